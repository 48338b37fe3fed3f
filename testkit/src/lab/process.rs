//! Background processes that outlive the command which started them.
//!
//! Each is recorded by pid *and* start time, so that a pid which the kernel has given to another program
//! in the meantime is never signalled.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::command;

/// How often a dying process is looked at.
const POLL: Duration = Duration::from_millis(50);
/// A process that survives SIGKILL for so long hangs in the kernel.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// A running process, as the kernel tells it apart from every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number, which the kernel gives again later.
    pub pid: i32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

/// What a process does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// It is not there, or only waits to be reaped.
    Dead,
    /// Stopped by SIGSTOP.
    Paused,
    /// Anything else.
    Running,
}

impl ProcessId {
    /// The process that has this pid now.
    pub fn of(pid: i32) -> Option<Self> {
        let (start_time, _) =
            parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        Some(Self { pid, start_time })
    }

    /// Its state now.
    pub fn state(self) -> ProcessState {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        match parse_stat(&stat) {
            Some((since, state)) if since == self.start_time => match state {
                'Z' | 'X' => ProcessState::Dead,
                'T' => ProcessState::Paused,
                _ => ProcessState::Running,
            },
            _ => ProcessState::Dead,
        }
    }

    /// Whether it still runs, paused or not.
    pub fn is_alive(self) -> bool {
        self.state() != ProcessState::Dead
    }

    fn signal(self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_alive()) else {
            return Ok(());
        };
        match kill_process(pid, signal) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("sending {signal:?} to {}", self.pid)),
        }
    }

    fn wait(self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(POLL);
        }
        true
    }

    /// Asks it to end; kills it after `grace`. Returns when it is gone.
    pub fn terminate(self, grace: Duration) -> Result<()> {
        self.signal(Signal::TERM)?;
        // A paused process would see the request only when resumed.
        self.signal(Signal::CONT)?;
        if self.wait(grace) { Ok(()) } else { self.kill9() }
    }

    /// Kills it, with no chance to tidy up. Returns when it is gone.
    pub fn kill9(self) -> Result<()> {
        self.signal(Signal::KILL)?;
        if !self.wait(KILL_DEADLINE) {
            bail!("process {} survives SIGKILL: look at /proc/{}/stack", self.pid, self.pid);
        }
        Ok(())
    }

    /// Stops it where it is.
    pub fn pause(self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn resume(self) -> Result<()> {
        self.signal(Signal::CONT)
    }
}

/// Start time and state out of `/proc/PID/stat`. The program's name is in brackets and may itself contain
/// blanks and brackets, so the fields are counted from the last bracket.
fn parse_stat(stat: &str) -> Option<(u64, char)> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3; the start time is field 22.
    Some((fields.nth(18)?.parse().ok()?, state))
}

/// A named background process of a directory: record in `run/`, output in `logs/`.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    folder: PathBuf,
}

impl Service {
    /// The service `name` whose record and log are below `folder`.
    pub fn new(folder: &Path, name: &str) -> Self {
        Self { name: name.to_owned(), folder: folder.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    pub fn log(&self) -> PathBuf {
        self.folder.join("logs").join(format!("{}.log", self.name))
    }

    fn record(&self) -> PathBuf {
        self.folder.join("run").join(format!("{}.json", self.name))
    }

    /// The recorded process, whether or not it still runs.
    pub fn process(&self) -> Option<ProcessId> {
        serde_json::from_slice(&std::fs::read(self.record()).ok()?).ok()
    }

    /// State of the recorded process.
    pub fn state(&self) -> ProcessState {
        self.process().map_or(ProcessState::Dead, ProcessId::state)
    }

    /// Starts it unless it runs, resumes it if it is paused; in the network namespace `netns` if one is
    /// named. Says whether it started.
    pub fn start(&self, netns: Option<&str>, program: &Path, args: &[String]) -> Result<bool> {
        if self.state() != ProcessState::Dead {
            return self.with(ProcessId::resume).map(|()| false);
        }
        if let Some(folder) = self.log().parent() {
            std::fs::create_dir_all(folder)?;
        }
        let log = File::options().create(true).append(true).open(self.log())?;
        // An own session: neither Ctrl-C nor the end of the terminal reaches it. setsid and nsenter both
        // replace themselves, so the pid is the program's.
        let mut command = Command::new("setsid");
        if let Some(name) = netns {
            // Not `ip netns exec`: it remounts /sys, and the kubelet then finds no cgroups.
            command.arg("nsenter").arg(format!("--net=/run/netns/{name}"));
        }
        command.arg(program).args(args).current_dir(&self.folder);
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.name))?;
        let id = i32::try_from(child.id()).ok().and_then(ProcessId::of);
        let id = id.with_context(|| {
            format!("{} ended at once: see {}", self.name, self.log().display())
        })?;
        command::write(&self.record(), serde_json::to_vec(&id)?)?;
        Ok(true)
    }

    /// Fails with the end of the log if the process is gone.
    pub fn check(&self) -> Result<()> {
        if self.state() == ProcessState::Dead {
            let log = self.log();
            bail!(
                "{} died; {} ends:\n{}",
                self.name,
                log.display(),
                command::tail_of_file(&log, 15)
            );
        }
        Ok(())
    }

    /// Applies `action` to the process if it runs.
    pub fn with(&self, action: impl FnOnce(ProcessId) -> Result<()>) -> Result<()> {
        match self.process() {
            Some(id) if id.is_alive() => action(id).with_context(|| format!("for {}", self.name)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
