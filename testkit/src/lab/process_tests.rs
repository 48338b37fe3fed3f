use std::path::Path;
use std::time::Duration;

use super::*;

#[test]
fn stat_is_read_behind_a_name_with_brackets() {
    let rest = (4..=21).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    assert_eq!(parse_stat(&format!("7 (a) b) S {rest} 4711 23 24")), Some((4711, 'S')));
    assert_eq!(parse_stat(""), None);
}

#[test]
fn service_starts_once_pauses_resumes_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::new(folder.path(), "sleeper");
    let args = ["60".to_owned()];
    assert!(service.start(None, Path::new("sleep"), &args).unwrap());
    assert!(!service.start(None, Path::new("sleep"), &args).unwrap());
    service.with(ProcessId::pause).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(service.state(), ProcessState::Paused);
    service.with(ProcessId::resume).unwrap();
    service.with(|id| id.terminate(Duration::from_secs(5))).unwrap();
    assert_eq!(service.state(), ProcessState::Dead);
    assert!(service.check().is_err());
}

#[test]
fn reused_pid_counts_as_dead() {
    let own = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
    assert!(own.is_alive());
    let other = ProcessId { start_time: own.start_time + 1, ..own };
    assert!(!other.is_alive());
    other.kill9().unwrap();
}
