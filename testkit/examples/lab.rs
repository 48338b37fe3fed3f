//! Temporary driver.
use bsn_testkit::lab::*;
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let w: Vec<&str> = a.iter().map(String::as_str).collect();
    let t = std::time::Instant::now();
    match w.as_slice() {
        ["up", c, m] => {
            let (_, r) = Lab::up(LabSpec {
                clusters: c.parse()?,
                machines: m.parse()?,
            })
            .await?;
            for (p, s) in r.phases {
                println!("{p}: {s:.1}");
            }
            for b in r.built {
                println!("{b:?}");
            }
        }
        ["down"] => Lab::down()?,
        ["status"] => {
            let s = Lab::load()?.status().await;
            println!("{s:#?}");
        }
        ["lab", "provisioner", _, k] => provisioner::run(k.parse()?).await?,
        ["partition", x, y] => Lab::load()?.partition(x.parse()?, y.parse()?)?,
        ["heal"] => Lab::load()?.heal()?,
        ["off", id] => Lab::load()?.stop_machine(id.parse()?)?,
        ["on", id] => Lab::load()?.start_machine(id.parse()?)?,
        ["import", f] => Lab::load()?.import_image(f.as_ref(), &[0])?,
        ["stopapi", k] => Lab::load()?.stop_api_server(k.parse()?)?,
        ["startapi", k] => {
            let l = Lab::load()?;
            l.start_api_server(k.parse()?)?;
            l.wait_api_server(k.parse()?).await?;
        }
        _ => println!("?"),
    }
    println!("took {:.1} s", t.elapsed().as_secs_f64());
    Ok(())
}
