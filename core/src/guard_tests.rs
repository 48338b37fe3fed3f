use super::*;

fn identity() -> PodIdentity {
    PodIdentity {
        network_id: "n1".into(),
        identity_id: "i1".into(),
        consensus_key: "k1".into(),
        genesis_hash: "g1".into(),
        disk_uid: "d1".into(),
    }
}

fn marker() -> Marker {
    Marker { identity: identity(), nonce: "t1".into() }
}

fn token(signing_state: SignedAt) -> Token {
    Token { nonce: "t1".into(), identity: identity(), signing_state }
}

fn empty() -> ObservedDisk {
    ObservedDisk {
        marker: Found::Absent,
        signing_state: Found::Absent,
        other_files: false,
        last_machine: None,
    }
}

/// The disk of a node that signed up to height 100 on machine m1.
fn used() -> ObservedDisk {
    ObservedDisk {
        marker: Found::Present(marker()),
        signing_state: Found::Present(SignedAt::past(100)),
        other_files: true,
        last_machine: Some("m1".into()),
    }
}

fn seen(head: u64, voted: u64) -> PeerAnswer {
    PeerAnswer::Seen { head, vote: (voted > 0).then(|| SignedAt::past(voted)) }
}

/// Plays rounds of answers, one a second, and gives the decision after each.
fn play(
    disk: &ObservedDisk,
    token: Option<&Token>,
    machine: &str,
    rounds: &[(u64, Vec<PeerAnswer>)],
) -> Vec<Decision> {
    let mut watch = Watch::default();
    let decide = |(second, answers): &(u64, Vec<PeerAnswer>)| {
        let elapsed = Duration::from_secs(*second);
        watch.observe(answers, elapsed);
        let identity = identity();
        next_start(&Input {
            disk,
            identity: &identity,
            token,
            machine,
            answers,
            watch: &watch,
            elapsed,
        })
    };
    rounds.iter().map(decide).collect()
}

fn once(disk: &ObservedDisk, token: Option<&Token>, answers: Vec<PeerAnswer>) -> Decision {
    play(disk, token, "m1", &[(0, answers)]).remove(0)
}

use PeerAnswer::{NotStarted, Silent};

#[test]
fn a_first_start_needs_a_token_and_no_answer() {
    let fresh = token(SignedAt::default());
    let silent = vec![Silent, Silent];
    assert_eq!(once(&empty(), None, silent.clone()), Decision::Refuse(Refusal::NoToken));
    assert_eq!(once(&empty(), Some(&fresh), silent), Decision::FirstStart(SignedAt::default()));
}

#[test]
fn a_vote_of_the_key_forbids_even_a_first_start_with_a_token() {
    let fresh = token(SignedAt::default());
    let refusal = once(&empty(), Some(&fresh), vec![Silent, seen(50, 7)]);
    assert!(matches!(refusal, Decision::Refuse(Refusal::SignedBeyondDisk { .. })), "{refusal:?}");
}

#[test]
fn with_consent_a_lost_disk_starts_beyond_everything_that_was_signed() {
    let consented = token(SignedAt::past(110));
    let decision = once(&empty(), Some(&consented), vec![seen(101, 100)]);
    assert_eq!(decision, Decision::FirstStart(SignedAt::past(110)));
    // The chain went on, and the key with it: somebody else signs.
    let decision = once(&empty(), Some(&consented), vec![seen(120, 119)]);
    assert!(matches!(decision, Decision::Refuse(Refusal::SignedBeyondDisk { .. })));
}

#[test]
fn a_crash_between_the_two_first_writes_is_finished() {
    let fresh = token(SignedAt::default());
    let half = ObservedDisk { signing_state: Found::Present(SignedAt::default()), ..empty() };
    assert_eq!(once(&half, Some(&fresh), vec![]), Decision::FinishFirstStart);
    let strange = ObservedDisk { signing_state: Found::Present(SignedAt::past(3)), ..empty() };
    assert_eq!(once(&strange, Some(&fresh), vec![]), Decision::Refuse(Refusal::NotEmpty));
}

#[test]
fn a_token_of_another_disk_is_refused() {
    let mut other = token(SignedAt::default());
    other.identity.disk_uid = "d2".into();
    let decision = once(&empty(), Some(&other), vec![]);
    assert_eq!(decision, Decision::Refuse(Refusal::OtherToken("disk's uid")));
}

#[test]
fn an_intact_disk_on_its_machine_starts_with_the_first_answer() {
    assert_eq!(once(&used(), None, vec![Silent, seen(105, 100)]), Decision::Start);
    assert_eq!(once(&used(), None, vec![]), Decision::Start);
}

#[test]
fn an_older_copy_of_the_disk_is_refused_by_what_others_saw() {
    let decision = once(&used(), None, vec![Silent, seen(205, 101)]);
    let refusal =
        Refusal::SignedBeyondDisk { seen: SignedAt::past(101), recorded: SignedAt::past(100) };
    assert_eq!(decision, Decision::Refuse(refusal));
}

#[test]
fn a_cold_start_of_all_machines_ends() {
    let rounds = [
        (0, vec![Silent, Silent]),
        (30, vec![Silent, NotStarted]),
        (60, vec![NotStarted, NotStarted]),
    ];
    assert_eq!(
        play(&used(), None, "m1", &rounds),
        [Decision::Wait(Wait::ForPeers), Decision::Wait(Wait::ForPeers), Decision::Start]
    );
    assert_eq!(play(&used(), None, "m2", &rounds)[2], Decision::Start);
}

#[test]
fn on_another_machine_the_key_must_be_seen_silent_for_some_blocks() {
    let rounds: Vec<_> = (0..=6).map(|n| (n, vec![seen(100 + n, 100)])).collect();
    let decisions = play(&used(), None, "m2", &rounds);
    assert_eq!(decisions[4], Decision::Wait(Wait::ForSilence));
    assert_eq!(decisions[5], Decision::Start);
}

#[test]
fn while_the_old_process_signs_on_a_shared_disk_the_new_one_waits() {
    // The disk's record moves with the votes, as on storage that two machines reach.
    let mut watch = Watch::default();
    let identity = identity();
    for n in 0..200 {
        let answers = [seen(100 + n, 100 + n)];
        let elapsed = Duration::from_secs(n);
        let disk =
            ObservedDisk { signing_state: Found::Present(SignedAt::past(101 + n)), ..used() };
        watch.observe(&answers, elapsed);
        let decision = next_start(&Input {
            disk: &disk,
            identity: &identity,
            token: None,
            machine: "m2",
            answers: &answers,
            watch: &watch,
            elapsed,
        });
        assert_eq!(decision, Decision::Wait(Wait::ForSilence), "after {n} s");
    }
}

#[test]
fn on_another_machine_and_a_standing_chain_time_must_pass() {
    let rounds: Vec<_> = [0, 59, 60].map(|second| (second, vec![seen(100, 100)])).into();
    assert_eq!(
        play(&used(), None, "m2", &rounds),
        [Decision::Wait(Wait::ForSilence), Decision::Wait(Wait::ForSilence), Decision::Start]
    );
}

#[test]
fn a_chain_that_stops_with_the_old_process_waits_for_the_new_one_no_longer_than_its_patience() {
    // The old process signed on; then its machine died, and the chain lacks its power.
    let mut watch = Watch::default();
    for (second, height) in [(0, 100), (10, 110), (20, 120), (79, 120)] {
        watch.observe(&[seen(height, height)], Duration::from_secs(second));
    }
    assert!(!watch.silent(Duration::from_secs(79)));
    assert!(watch.silent(Duration::from_secs(80)));
}

#[test]
fn peers_that_die_while_a_node_waits_do_not_stop_it_for_ever() {
    let rounds = [
        (0, vec![seen(100, 100)]),
        (50, vec![seen(101, 100)]),
        (90, vec![Silent]),
        (110, vec![NotStarted]),
    ];
    let decisions = play(&used(), None, "m2", &rounds);
    assert_eq!(decisions[2], Decision::Wait(Wait::ForPeers), "the chain moved 40 s ago");
    assert_eq!(decisions[3], Decision::Start);
}

/// Every combination of inputs: what may never happen does not.
#[test]
fn no_combination_of_inputs_starts_a_key_that_may_sign_twice() {
    let mut markers = vec![Found::Absent, Found::Damaged("x".into()), Found::Present(marker())];
    for field in 0..5 {
        let mut other = marker();
        let identity = &mut other.identity;
        let fields = [
            &mut identity.network_id,
            &mut identity.identity_id,
            &mut identity.consensus_key,
            &mut identity.genesis_hash,
            &mut identity.disk_uid,
        ];
        *fields.into_iter().nth(field).unwrap() = "other".into();
        markers.push(Found::Present(other));
    }
    let states = [
        Found::Absent,
        Found::Damaged("x".into()),
        Found::Present(SignedAt::default()),
        Found::Present(SignedAt::past(100)),
    ];
    let mut other_token = token(SignedAt::default());
    other_token.identity.identity_id = "i2".into();
    let tokens = [
        None,
        Some(token(SignedAt::default())),
        Some(token(SignedAt::past(110))),
        Some(other_token),
    ];
    let answer = [Silent, NotStarted, seen(90, 0), seen(105, 100), seen(105, 101), seen(130, 120)];
    let mut checked = 0;
    for marker_found in &markers {
        for signing_state in &states {
            for other_files in [false, true] {
                for last_machine in [None, Some("m1".to_owned()), Some("m2".to_owned())] {
                    let disk = ObservedDisk {
                        marker: marker_found.clone(),
                        signing_state: signing_state.clone(),
                        other_files,
                        last_machine,
                    };
                    for token in &tokens {
                        for one in answer {
                            for two in answer {
                                for seconds in [0, 59, 60, 600] {
                                    let rounds = [(seconds, vec![one, two])];
                                    let decision =
                                        play(&disk, token.as_ref(), "m1", &rounds).remove(0);
                                    check(&disk, token.as_ref(), &[one, two], seconds, &decision);
                                    checked += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(checked > 100_000, "{checked}");
}

fn check(
    disk: &ObservedDisk,
    token: Option<&Token>,
    answers: &[PeerAnswer],
    seconds: u64,
    decision: &Decision,
) {
    let shown = answers.iter().filter_map(|answer| match answer {
        PeerAnswer::Seen { vote, .. } => *vote,
        _ => None,
    });
    let shown = shown.max();
    let context = || format!("{disk:?} {token:?} {answers:?} {seconds}");
    let right_token = token.filter(|token| token.identity == identity());
    match decision {
        Decision::FirstStart(state) => {
            assert_eq!(disk.marker, Found::Absent, "{}", context());
            assert!(disk.signing_state == Found::Absent && !disk.other_files, "{}", context());
            assert_eq!(right_token.unwrap().signing_state, *state, "{}", context());
            assert!(shown <= Some(*state), "{}", context());
        }
        Decision::FinishFirstStart => {
            let state = right_token.unwrap().signing_state;
            assert!(disk.marker == Found::Absent && !disk.other_files, "{}", context());
            assert_eq!(disk.signing_state, Found::Present(state), "{}", context());
            assert!(shown <= Some(state), "{}", context());
        }
        Decision::Start => {
            assert_eq!(disk.marker, Found::Present(marker()), "{}", context());
            let Found::Present(state) = disk.signing_state else { panic!("{}", context()) };
            assert!(shown <= Some(state), "{}", context());
        }
        Decision::Wait(_) => {
            // An intact disk, answers or not: no wait on its own machine outlives the patience.
            let moved = disk.last_machine.as_deref().is_some_and(|last| last != "m1");
            assert!(moved || seconds < PATIENCE.as_secs(), "{}", context());
        }
        Decision::Refuse(_) => {
            let intact = disk.marker == Found::Present(marker())
                && matches!(disk.signing_state, Found::Present(state) if shown <= Some(state));
            assert!(!intact, "an intact disk without a vote beyond it was refused: {}", context());
        }
    }
}
