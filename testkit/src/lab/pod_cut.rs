//! A pod that is cut off on one port, in its own network namespace: connections that are open stay open and carry
//! nothing, as when a cable is pulled.

use anyhow::{Context as _, Result};

use super::command;
use super::process::ProcessId;

/// A cut in force; it ends when this is dropped, or with the pod.
#[derive(Debug)]
pub struct PodCut {
    process: ProcessId,
    rules: Vec<[String; 6]>,
}

/// Drops all packets of a TCP port, as server and as client, of the pod that `process` runs in.
pub fn cut_pod(process: ProcessId, port: u16) -> Result<PodCut> {
    let rule = |chain: &str, side: &str| {
        [chain, "-p", "tcp", side, &port.to_string(), "-j"].map(str::to_owned)
    };
    let mut cut = PodCut { process, rules: Vec::new() };
    for chain in ["INPUT", "OUTPUT"] {
        for side in ["--dport", "--sport"] {
            let rule = rule(chain, side);
            cut.iptables("-I", &rule)?;
            cut.rules.push(rule);
        }
    }
    Ok(cut)
}

impl PodCut {
    /// Heals it, and says whether that worked. Dropping it does the same without a word.
    pub fn heal(mut self) -> Result<()> {
        self.remove()
    }

    fn iptables(&self, verb: &str, rule: &[String; 6]) -> Result<()> {
        let target = self.process.pid.to_string();
        let mut args = vec!["--net", "--target", &target, "iptables", "-w", verb];
        args.extend(rule.iter().map(String::as_str));
        args.push("DROP");
        command::run("nsenter", args).map(drop).context("cutting a pod off")
    }

    fn remove(&mut self) -> Result<()> {
        // Its namespace ended with the pod.
        if !self.process.is_alive() {
            self.rules.clear();
        }
        while let Some(rule) = self.rules.pop() {
            self.iptables("-D", &rule)?;
        }
        Ok(())
    }
}

impl Drop for PodCut {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(error = format!("{error:#}"), "the pod stays cut off");
        }
    }
}
