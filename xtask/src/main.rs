//! Developer commands.
mod generate;
fn main() -> anyhow::Result<()> {
    generate::run(std::path::Path::new("."))
}
