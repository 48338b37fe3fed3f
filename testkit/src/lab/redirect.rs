//! Redirected connections: what some pods send to a Service arrives at a program in the root namespace.
//!
//! The rules are in a chain of their own in each machine's network namespace, before kube-proxy's. Each
//! names the process that made it, so that those of a test that was killed are found and removed: by the next
//! redirect, and by [`Lab::heal`]. Connections that are open already go on where they went.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};

use super::Lab;
use super::command;
use super::layout::MachineId;
use super::process::ProcessId;
use super::teardown::netns_path;

/// The chain in each machine's `nat` table.
const CHAIN: &str = "BSNLAB-REDIRECT";
/// What a rule's comment begins with. No blanks, so that `iptables -S` does not quote it.
const OWNER: &str = "bsn-redirect_";
/// Redirects this process has made: each removes its own rules only, also if another has the same.
static MADE: AtomicU64 = AtomicU64::new(0);

/// A redirect in force; it ends when this is dropped.
#[derive(Debug)]
pub struct Redirect {
    namespaces: Vec<String>,
    rules: Vec<Vec<String>>,
}

impl Redirect {
    /// Ends it, and says whether that worked. Dropping it does the same without a word.
    pub fn end(mut self) -> Result<()> {
        self.remove()
    }

    /// In the network namespaces of these names.
    fn begin(
        namespaces: Vec<String>,
        sources: &[Ipv4Addr],
        service: SocketAddrV4,
        to: SocketAddrV4,
    ) -> Result<Self> {
        let pid = i32::try_from(std::process::id()).ok().and_then(ProcessId::of);
        let process = pid.context("reading this process's own start time")?;
        let owner = owner_text(process, MADE.fetch_add(1, Ordering::Relaxed));
        let rules = sources.iter().map(|&from| rule(from, service, to, &owner)).collect();
        // Complete from here on, so that a failure half-way removes what was made.
        let redirect = Self { namespaces, rules };
        for namespace in &redirect.namespaces {
            ensure_chain(namespace)?;
            remove_strays(namespace)?;
            for rule in &redirect.rules {
                nat(namespace, "-A", rule)?;
            }
        }
        Ok(redirect)
    }

    fn remove(&mut self) -> Result<()> {
        let rules = std::mem::take(&mut self.rules);
        let mut result = Ok(());
        // A machine that was switched off has taken its rules with it.
        for namespace in self.namespaces.iter().filter(|name| netns_path(name).exists()) {
            for rule in &rules {
                while nat(namespace, "-C", rule).is_ok() {
                    if let Err(error) = nat(namespace, "-D", rule) {
                        result = Err(error);
                        break;
                    }
                }
            }
        }
        result
    }
}

impl Drop for Redirect {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(error = format!("{error:#}"), "a redirect could not be removed");
        }
    }
}

impl Lab {
    /// Sends what the pods with the addresses `sources`, on any machine of `cluster`, send to `service` (a
    /// Service's address and port) to `to` instead, which must be on the lab's bridge.
    pub fn redirect(
        &self,
        cluster: usize,
        sources: &[Ipv4Addr],
        service: SocketAddrV4,
        to: SocketAddrV4,
    ) -> Result<Redirect> {
        self.check_cluster(cluster)?;
        let namespaces =
            self.spec.machines().filter(|id| id.cluster == cluster).map(MachineId::namespace);
        // Tests that run side by side would take each other's jump for their own to remove.
        let turn = self.layout().cluster(cluster).join("redirect.lock");
        let turn = File::create(&turn).with_context(|| format!("making {}", turn.display()))?;
        turn.lock().context("waiting for another redirect")?;
        Redirect::begin(namespaces.collect(), sources, service, to)
            .with_context(|| format!("redirecting {service} in cluster {cluster} to {to}"))
    }

    /// Removes the redirects of processes that are gone.
    pub(super) fn remove_stray_redirects(&self) -> Result<()> {
        let names = self.spec.machines().map(MachineId::namespace);
        names.filter(|name| netns_path(name).exists()).try_for_each(|name| remove_strays(&name))
    }
}

fn nat(namespace: &str, action: &str, rule: &[String]) -> Result<String> {
    let netns = format!("--net={}", netns_path(namespace).display());
    let fixed = [netns.as_str(), "iptables", "-w", "-t", "nat", action];
    let words = fixed.into_iter().chain(rule.iter().map(String::as_str));
    command::run("nsenter", words)
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// The chain is there and asked first. It stays, empty, until the machine is switched off.
fn ensure_chain(namespace: &str) -> Result<()> {
    let chain = words(CHAIN);
    if nat(namespace, "-S", &chain).is_err() {
        nat(namespace, "-N", &chain)?;
    }
    let jump = words(&format!("PREROUTING -j {CHAIN}"));
    // Made anew each time: kube-proxy puts its own jump first whenever it starts.
    while nat(namespace, "-C", &jump).is_ok() {
        nat(namespace, "-D", &jump)?;
    }
    nat(namespace, "-I", &jump).map(drop)
}

fn remove_strays(namespace: &str) -> Result<()> {
    // No chain, no rules: no test has redirected anything on this machine yet.
    let Ok(rules) = nat(namespace, "-S", &words(CHAIN)) else { return Ok(()) };
    let strays = rules.lines().filter(|rule| owner(rule).is_some_and(|owner| !owner.is_alive()));
    for rule in strays.filter_map(|rule| rule.strip_prefix("-A ")) {
        nat(namespace, "-D", &words(rule))?;
    }
    Ok(())
}

fn rule(from: Ipv4Addr, service: SocketAddrV4, to: SocketAddrV4, owner: &str) -> Vec<String> {
    let (address, port) = (service.ip(), service.port());
    words(&format!(
        "{CHAIN} -s {from}/32 -d {address}/32 -p tcp -m tcp --dport {port} -m comment --comment {owner} -j DNAT --to-destination {to}"
    ))
}

fn owner_text(process: ProcessId, number: u64) -> String {
    format!("{OWNER}{}_{}_{number}", process.pid, process.start_time)
}

/// The process that made a rule, out of a line of `iptables -S`.
fn owner(rule: &str) -> Option<ProcessId> {
    let comment = rule.split_whitespace().find_map(|word| word.strip_prefix(OWNER))?;
    let mut numbers = comment.split('_');
    let (pid, start_time) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    Some(ProcessId { pid, start_time })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_pods_connections_to_the_one_port_are_redirected() {
        let rule = rule(
            Ipv4Addr::new(10, 244, 1, 7),
            SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 40), 8443),
            SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 100), 41234),
            "bsn-redirect_7_9_0",
        );
        assert_eq!(
            rule.join(" "),
            "BSNLAB-REDIRECT -s 10.244.1.7/32 -d 10.96.0.40/32 -p tcp -m tcp --dport 8443 -m comment --comment bsn-redirect_7_9_0 -j DNAT --to-destination 10.99.0.100:41234"
        );
    }

    #[test]
    fn a_rule_tells_whose_it_is_and_others_rules_are_nobodys() {
        let process = ProcessId { pid: 7, start_time: 9 };
        let line = format!("-A {CHAIN} -m comment --comment {} -j DNAT", owner_text(process, 3));
        assert_eq!(owner(&line), Some(process));
        assert_eq!(owner("-A KUBE-SERVICES -m comment --comment x -j DNAT"), None);
    }
}
