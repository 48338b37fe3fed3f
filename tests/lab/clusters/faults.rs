//! Faults of clusters that end by themselves when a story fails: the next one must not meet them.

use std::net::SocketAddr;
use std::time::Duration;

use bsn_testkit::lab::{Lab, MachineId, layout};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::eventually;

/// Two clusters that do not reach each other, until this is dropped.
pub struct Cut(Lab);

impl Cut {
    pub fn between(lab: &Lab, one: usize, other: usize) -> Self {
        lab.partition(one, other).unwrap();
        Self(lab.clone())
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Err(error) = self.0.heal() {
            eprintln!("the clusters stay cut from each other: {error:#}");
        }
    }
}

/// A firewall before one port of a cluster, until this is dropped.
pub struct Firewall {
    // Ends with this.
    _rule: Cut,
}

impl Firewall {
    /// From `one` cluster, this port of the machines of the `other` is not reached.
    pub fn between(lab: &Lab, one: usize, other: usize, port: u16) -> Self {
        lab.block_port(one, other, port).unwrap();
        Self { _rule: Cut(lab.clone()) }
    }
}

/// A cluster whose API server is stopped, until this is dropped.
pub struct Headless {
    lab: Lab,
    cluster: usize,
}

impl Headless {
    pub fn stop(lab: &Lab, cluster: usize) -> Self {
        lab.stop_api_server(cluster).unwrap();
        Self { lab: lab.clone(), cluster }
    }

    /// Starts the API server again, and waits until it answers.
    pub async fn start(self) {
        let (lab, cluster) = (self.lab.clone(), self.cluster);
        drop(self);
        lab.wait_api_server(cluster).await.unwrap();
    }
}

impl Drop for Headless {
    fn drop(&mut self) {
        if let Err(error) = self.lab.start_api_server(self.cluster) {
            eprintln!("the API server of cluster {} stays stopped: {error:#}", self.cluster);
        }
    }
}

/// A cluster in which all machines and the API server are off, until this is dropped.
pub struct Dark {
    lab: Lab,
    cluster: usize,
}

impl Dark {
    pub fn of(lab: &Lab, cluster: usize) -> Self {
        let dark = Self { lab: lab.clone(), cluster };
        for machine in 0..lab.spec().machines {
            lab.stop_machine(MachineId { cluster, machine }).unwrap();
        }
        lab.stop_api_server(cluster).unwrap();
        dark
    }

    /// Everything comes back; waits until the API server answers.
    pub async fn end(self) {
        let (lab, cluster) = (self.lab.clone(), self.cluster);
        drop(self);
        lab.wait_api_server(cluster).await.unwrap();
    }
}

impl Drop for Dark {
    fn drop(&mut self) {
        let mut started = self.lab.start_api_server(self.cluster);
        for machine in 0..self.lab.spec().machines {
            started =
                started.and(self.lab.start_machine(MachineId { cluster: self.cluster, machine }));
        }
        if let Err(error) = started {
            eprintln!("cluster {} stays dark: {error:#}", self.cluster);
        }
    }
}

/// A server that takes every connection and never says a word, until this is dropped.
pub struct Mute {
    pub address: SocketAddr,
    task: JoinHandle<()>,
    taken: tokio::sync::watch::Receiver<usize>,
}

impl Mute {
    /// On the lab's bridge, where pods of all clusters reach it.
    pub async fn listen() -> Self {
        let listener = TcpListener::bind((layout::BRIDGE_IP, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (count, taken) = tokio::sync::watch::channel(0);
        let task = tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.push(stream);
                count.send_replace(open.len());
            }
        });
        Self { address, task, taken }
    }

    /// Waits until somebody has connected: what follows is about this server.
    pub async fn await_caller(&self, within: Duration) {
        eventually("a connection to the mute server", within, async || {
            let taken = *self.taken.borrow();
            if taken > 0 { Ok(()) } else { Err("nobody has connected".to_owned()) }
        })
        .await;
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        self.task.abort();
    }
}
