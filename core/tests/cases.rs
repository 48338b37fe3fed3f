//! Decisions as text: every folder of `tests/cases` holds a `world.yaml`, which says what is so, and an
//! `expected.yaml`, which says what the planner answers. Both are written for people; `tests/cases/README.md`
//! explains the words. `BSN_UPDATE_CASES=1` writes the answers anew: look at each difference.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in a test a panic is the report")]
#![allow(clippy::struct_excessive_bools, reason = "a case is made of words that are there or not")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use bsn_core::membership::model::{
    Agents, Begun, Cure, DesiredSet, Engine, Entry, Follower, Head, Hub, Inputs, Ledger, Liveness,
    Member, Node, Replacement, SILENT,
};
use bsn_core::membership::play::{Plan, plan};
use bsn_core::membership::{Decision, Desired, Observed, Policy, Refusal, next_step, warnings};
use bsn_core::names::NodeName;
use bsn_core::quorum::Quorum;
use serde::{Deserialize, Serialize};

const LEDGER: &str = "main";

/// `world.yaml`. Whatever is left out is well.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    quorum: Quorum,
    #[serde(default)]
    weights: bool,
    #[serde(default)]
    head: Head,
    #[serde(default)]
    age_seconds: u64,
    #[serde(default)]
    disagree: bool,
    #[serde(default)]
    pending: Option<String>,
    /// Nodes, each in a few words: `voter 1000, down`.
    nodes: BTreeMap<String, String>,
    /// Voters of other owners: `1000`, `1000, silent`.
    #[serde(default)]
    foreign: BTreeMap<String, String>,
    #[serde(default)]
    begun: Option<Begun>,
    #[serde(default)]
    hub: Hub,
    desired: BTreeMap<String, Wanted>,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    policy: Policy,
    /// Play all steps, not only the next.
    #[serde(default)]
    play: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    replicas: u32,
    #[serde(default = "thousand")]
    power: u64,
    #[serde(default = "yes")]
    votes: bool,
    #[serde(default)]
    retire: BTreeSet<String>,
    #[serde(default)]
    cluster: String,
}

fn thousand() -> u64 {
    1000
}

fn yes() -> bool {
    true
}

/// `expected.yaml`.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expected {
    decision: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    consent: Option<String>,
    /// Every step with the voters to spare after it, and how it ends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    path: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// What a node's words stand for.
struct Words {
    node: Node,
    member: Option<Member>,
    follower: Follower,
}

fn read_words(name: &NodeName, set: &str, text: &str) -> Words {
    let mut words = text.split(',').map(str::trim);
    let role: Vec<&str> = words.next().unwrap_or_default().split_whitespace().collect();
    let member = match role.as_slice() {
        ["voter"] => Some(1),
        ["voter", power] => Some(power.parse().unwrap()),
        ["observer"] => None,
        other => panic!("{name}: {other:?} is neither \"voter POWER\" nor \"observer\""),
    }
    .map(|power| Member {
        power,
        node: Some(name.clone()),
        liveness: Liveness::Live,
        signed: 12,
    });
    let mut all = Words {
        node: Node { described: "h1".to_owned(), ..Node::new(set) },
        member,
        follower: Follower { lag: 0, steady_seconds: 99, connected: true },
    };
    for word in words {
        let (word, value) = word.split_once(' ').unwrap_or((word, ""));
        let silence = |all: &mut Words, liveness| {
            if let Some(member) = &mut all.member {
                (member.liveness, member.signed) = (liveness, 0);
            }
            all.follower = Follower { lag: SILENT, steady_seconds: 0, connected: false };
        };
        match word {
            // The engine does not run, and the chain shows no sign of it.
            "down" => {
                all.node.engine = Engine::NotReady;
                silence(&mut all, Liveness::ProvedDown);
            }
            // The chain shows no sign of it, its container is ready.
            "silent" => silence(&mut all, Liveness::Unknown),
            // Neither its API server nor the chain tells.
            "unknown" => {
                all.node.engine = Engine::Unknown;
                silence(&mut all, Liveness::Unknown);
            }
            // It does not pass its probe; the chain shows its votes, and it follows.
            "notReady" => all.node.engine = Engine::NotReady,
            // It follows, its container is ready, and nobody saw it sign.
            "mute" => {
                if let Some(member) = &mut all.member {
                    (member.liveness, member.signed) = (Liveness::Unknown, 0);
                }
            }
            // Its API server cannot be asked; the chain shows its votes.
            "apiUnreachable" => all.node.engine = Engine::Unknown,
            // Nor does it answer; others see its votes.
            "cutOff" => {
                all.node.engine = Engine::Unknown;
                all.follower = Follower { lag: SILENT, steady_seconds: 0, connected: false };
            }
            "behind" => all.follower = Follower { lag: 99, steady_seconds: 0, connected: true },
            // It reads old blocks, and trails by none that is known.
            "catchingUp" => {
                all.follower = Follower { lag: 0, steady_seconds: 0, connected: false };
            }
            "pending" => all.node.inputs = Inputs::Pending,
            "diskLost" => all.node.disk_lost = true,
            "replaceAsked" => all.node.replacement = Replacement::Asked,
            "condemned" => all.node.replacement = Replacement::Recorded,
            "held" => all.node.held = true,
            "withoutAgents" => {
                all.node.agents = Agents::Unavailable("operator:2 cannot be run there".to_owned());
            }
            "cureOrdered" => all.node.cure = Cure::Ordered,
            "curing" => all.node.cure = Cure::Trying,
            "cureFailed" => all.node.cure = Cure::Failed,
            "entering" => {
                all.node.entry = Entry::Entering;
                if let Some(member) = &mut all.member {
                    member.signed = 0;
                }
            }
            "entryFailed" => all.node.entry = Entry::Failed,
            "signed" => all.member.as_mut().unwrap().signed = value.parse().unwrap(),
            "for" => all.node.down_seconds = value.trim_end_matches(" s").parse().unwrap(),
            "cluster" => value.clone_into(&mut all.node.cluster),
            "on" => value.clone_into(&mut all.node.domain),
            other => panic!("{name}: unknown word {other:?}"),
        }
    }
    all
}

fn read_world(case: &Case) -> (Desired, Observed) {
    let mut ledger = Ledger {
        quorum: case.quorum,
        weights: case.weights,
        members: BTreeMap::new(),
        agreed: !case.disagree,
        age_seconds: case.age_seconds,
        head: case.head,
        height: 100,
        pending: case.pending.clone(),
        followers: BTreeMap::new(),
    };
    let mut nodes = BTreeMap::new();
    for (short, text) in &case.nodes {
        let name = NodeName::from_object(&format!("net-{short}"));
        let set = short.rsplit_once('-').unwrap().0;
        let words = read_words(&name, set, text);
        if let Some(member) = words.member {
            ledger.members.insert(format!("key-{short}"), member);
        }
        ledger.followers.insert(name.clone(), words.follower);
        nodes.insert(name, words.node);
    }
    for (key, text) in &case.foreign {
        let (power, silent) =
            text.split_once(',').map_or((text.as_str(), false), |(p, _)| (p, true));
        let (liveness, signed) = if silent { (Liveness::Unknown, 0) } else { (Liveness::Live, 12) };
        let power = power.trim().parse().unwrap();
        ledger.members.insert(key.clone(), Member { power, node: None, liveness, signed });
    }
    let set = |(name, wanted): (&String, &Wanted)| DesiredSet {
        name: name.clone(),
        replicas: wanted.replicas,
        votes_on: wanted.votes.then(|| LEDGER.to_owned()).into_iter().collect(),
        power: if case.weights { wanted.power } else { 1 },
        retire: wanted.retire.iter().map(|n| NodeName::from_object(&format!("net-{n}"))).collect(),
        cluster: wanted.cluster.clone(),
    };
    let desired = Desired { sets: case.desired.iter().map(set).collect(), paused: case.paused };
    let observed = Observed {
        nodes,
        ledgers: [(LEDGER.to_owned(), ledger)].into(),
        begun: case.begun.clone(),
        hub: case.hub.clone(),
    };
    (desired, observed)
}

fn answer(decision: &Decision) -> (String, Option<&Refusal>) {
    match decision {
        Decision::Converged => ("converged".to_owned(), None),
        Decision::Step { step, consents } => {
            let used: Vec<_> = consents.iter().map(String::as_str).collect();
            let used = if used.is_empty() {
                String::new()
            } else {
                format!(" (uses {})", used.join(", "))
            };
            (format!("step: {step}{used}"), None)
        }
        Decision::Wait(refusal) => (format!("wait at {}", refusal.gate), Some(refusal)),
        Decision::NeedsConsent(refusal) => (format!("consent at {}", refusal.gate), Some(refusal)),
        Decision::Stuck(refusal) => (format!("stuck at {}", refusal.gate), Some(refusal)),
    }
}

fn path_of(Plan { steps, end, warnings: _ }: &Plan) -> Vec<String> {
    let line = |step: &bsn_core::membership::play::PlannedStep| {
        let spare = step.spare.map_or("stands".to_owned(), |spare| format!("{spare} to spare"));
        let used: Vec<_> = step.consents.iter().map(|used| format!(", uses {used}")).collect();
        let used = used.concat();
        format!("{} [{spare}{used}]", step.step)
    };
    let (end, refusal) = answer(end);
    let why = refusal.map_or(String::new(), |refusal| format!(": {}", refusal.message));
    steps.iter().map(line).chain([format!("{end}{why}")]).collect()
}

fn decide(case: &Case) -> Expected {
    let (desired, observed) = read_world(case);
    let decision = next_step(&desired, &observed, &case.policy);
    assert_eq!(
        decision,
        next_step(&desired, &observed, &case.policy),
        "asked twice, answered twice"
    );
    let (text, refusal) = answer(&decision);
    let before = refusal.map(|r| r.step.as_str()).filter(|step| !step.is_empty());
    let (mut path, mut warned) = (Vec::new(), warnings(&observed, &case.policy));
    if case.play {
        let mut next: BTreeMap<String, usize> = BTreeMap::new();
        for node in case.nodes.keys() {
            let (set, index) = node.rsplit_once('-').unwrap();
            let free = index.parse::<usize>().unwrap() + 1;
            let known = next.entry(set.to_owned()).or_default();
            *known = free.max(*known);
        }
        let played = plan(&desired, &observed, &case.policy, |set| {
            let index = next.entry(set.to_owned()).or_default();
            *index += 1;
            NodeName::from_object(&format!("net-{set}-{}", *index - 1))
        });
        path = path_of(&played);
        warned = played.warnings;
    }
    Expected {
        decision: before.map_or(text.clone(), |step| format!("{text} before: {step}")),
        message: refusal.map(|refusal| refusal.message.clone()),
        consent: refusal.and_then(|refusal| refusal.consent.clone()),
        path,
        warnings: warned.into_iter().map(|(gate, message)| format!("{gate}: {message}")).collect(),
    }
}

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases");
    let mut all: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    all.sort();
    all
}

#[test]
fn every_case_is_answered_as_expected() {
    let update = std::env::var("BSN_UPDATE_CASES").is_ok();
    let mut wrong = Vec::new();
    let folders = folders();
    assert!(folders.len() >= 178, "only {} cases were found", folders.len());
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let world = fs::read_to_string(folder.join("world.yaml")).unwrap();
        let case: Case = serde_saphyr::from_str(&world).unwrap_or_else(|e| panic!("{name}: {e}"));
        let decided = decide(&case);
        let file = folder.join("expected.yaml");
        if update {
            fs::write(&file, serde_saphyr::to_string(&decided).unwrap()).unwrap();
            continue;
        }
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected: Expected =
            serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        if decided != expected {
            let decided = serde_saphyr::to_string(&decided).unwrap();
            wrong.push(format!("{name}: expected\n{text}\nand it is\n{decided}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
