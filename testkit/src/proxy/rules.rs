//! What to do with which call. Pure.

use std::time::Duration;

use super::record::Seen;

/// Where a call stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Before the server sees it: whoever dies now has done nothing yet.
    BeforeForward,
    /// After the server has answered, and so done it: whoever dies now does not know that it is done.
    AfterAnswer,
}

/// What is done with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Forward it at once. For exceptions from a later rule.
    Pass,
    /// Forward it after this time.
    Delay(Duration),
    /// Neither forward nor answer it; its connection stays open until it is cut.
    Drop,
    /// Close its connection without forwarding it.
    Cut,
    /// Forward it, wait until the server has done it, then close the connection without the answer.
    AnswerLost,
    /// Answer with this HTTP status, without forwarding. A code outside 100 to 999 becomes 500.
    Status(u16),
    /// Let it stand until the test releases or cuts it.
    Hold(Side),
    /// Forward it, and cut the connection after so many bytes of the answer's body. A shorter answer
    /// passes whole. For watches.
    Truncate(u64),
}

/// Which of the calls that fit a rule it acts on, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Every,
    Only(u64),
    From(u64),
}

/// A predicate on calls, and an action.
///
/// A new rule fits every call; each method narrows it. Rules are asked in the order in which they were
/// set. Each counts every call that fits it, whichever rule decides in the end; the first whose turn it
/// is decides. A call that no rule wants passes.
#[derive(Clone, Debug)]
pub struct Rule {
    name: String,
    action: Action,
    methods: Vec<String>,
    paths: Vec<String>,
    not_paths: Vec<String>,
    queries: Vec<String>,
    writes: bool,
    turn: Turn,
}

impl Rule {
    /// A rule for all calls. Its name stands in the record and replaces an earlier rule of this name.
    pub fn new(name: &str, action: Action) -> Self {
        Self {
            name: name.to_owned(),
            action,
            methods: Vec::new(),
            paths: Vec::new(),
            not_paths: Vec::new(),
            queries: Vec::new(),
            writes: false,
            turn: Turn::Every,
        }
    }

    /// Only calls with this HTTP method. Given several times: any of them.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.methods.push(method.to_ascii_uppercase());
        self
    }

    /// Only calls whose path contains this. Given several times: all of them.
    #[must_use]
    pub fn path(mut self, part: &str) -> Self {
        self.paths.push(part.to_owned());
        self
    }

    /// No calls whose path contains this, for example `/leases/`, which are written every two seconds.
    #[must_use]
    pub fn not_path(mut self, part: &str) -> Self {
        self.not_paths.push(part.to_owned());
        self
    }

    /// Only calls whose query contains this, for example `watch=true`. Given several times: all of them.
    #[must_use]
    pub fn query(mut self, part: &str) -> Self {
        self.queries.push(part.to_owned());
        self
    }

    /// Only calls that change something.
    #[must_use]
    pub fn writes(mut self) -> Self {
        self.writes = true;
        self
    }

    /// Only the k-th call that fits, counted from 1 since the rule was set.
    #[must_use]
    pub fn only(mut self, k: u64) -> Self {
        self.turn = Turn::Only(k);
        self
    }

    /// The k-th call that fits and all later ones, counted from 1 since the rule was set.
    #[must_use]
    pub fn from(mut self, k: u64) -> Self {
        self.turn = Turn::From(k);
        self
    }

    fn fits(&self, call: &Seen) -> bool {
        let query = call.query.as_deref().unwrap_or_default();
        (!self.writes || call.write)
            && (self.methods.is_empty() || self.methods.contains(&call.method))
            && self.paths.iter().all(|part| call.path.contains(part))
            && !self.not_paths.iter().any(|part| call.path.contains(part))
            && self.queries.iter().all(|part| query.contains(part))
    }
}

/// The rules in force, with their counts.
#[derive(Debug, Default)]
pub(super) struct RuleSet(Vec<(Rule, u64)>);

impl RuleSet {
    /// Adds a rule at the end, or in the place of one of the same name; it counts from now on.
    pub(super) fn put(&mut self, rule: Rule) {
        match self.0.iter_mut().find(|(old, _)| old.name == rule.name) {
            Some(place) => *place = (rule, 0),
            None => self.0.push((rule, 0)),
        }
    }

    /// Removes the rule of this name, if there is one.
    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|(rule, _)| rule.name != name);
    }

    /// Removes all rules.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// How many calls fitted the rule of this name since it was set.
    pub(super) fn fitted(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|(rule, _)| rule.name == name).map(|(_, count)| *count)
    }

    /// Counts a call, and gives the rule that decides, if any, by name.
    pub(super) fn decide(&mut self, call: &Seen) -> Option<(String, Action)> {
        let mut decided = None;
        for (rule, count) in &mut self.0 {
            if !rule.fits(call) {
                continue;
            }
            *count += 1;
            let due = match rule.turn {
                Turn::Every => true,
                Turn::Only(k) => *count == k,
                Turn::From(k) => *count >= k,
            };
            if due && decided.is_none() {
                decided = Some((rule.name.clone(), rule.action));
            }
        }
        decided
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: &str, path: &str) -> Seen {
        Seen {
            method: method.to_owned(),
            path: path.to_owned(),
            query: Some("watch=true".to_owned()),
            write: method != "GET",
            rpc: None,
        }
    }

    fn names(rules: &mut RuleSet, calls: &[Seen]) -> Vec<Option<String>> {
        calls.iter().map(|call| rules.decide(call).map(|(name, _)| name)).collect()
    }

    #[test]
    fn every_rule_counts_what_fits_it_and_the_first_whose_turn_it_is_decides() {
        let mut rules = RuleSet::default();
        rules.put(Rule::new("second", Action::Cut).writes().only(2));
        rules.put(Rule::new("later", Action::Drop).writes().from(2));
        let write = call("POST", "/a");
        let found = names(&mut rules, &[write.clone(), write.clone(), call("GET", "/a"), write]);
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(found, [None, named("second"), None, named("later")]);
        assert_eq!((rules.fitted("second"), rules.fitted("later")), (Some(3), Some(3)));
    }

    #[test]
    fn a_rule_fits_only_when_all_that_it_names_fits() {
        let rule = Rule::new("r", Action::Cut)
            .method("post")
            .method("PUT")
            .path("/namespaces/n/")
            .not_path("/leases/")
            .query("watch=");
        assert!(rule.fits(&call("PUT", "/api/namespaces/n/secrets")));
        assert!(!rule.fits(&call("PATCH", "/api/namespaces/n/secrets")));
        assert!(!rule.fits(&call("PUT", "/api/namespaces/m/secrets")));
        assert!(!rule.fits(&call("PUT", "/api/namespaces/n/leases/l")));
        assert!(!rule.fits(&Seen { query: None, ..call("PUT", "/api/namespaces/n/secrets") }));
    }

    #[test]
    fn a_rule_of_the_same_name_takes_the_old_ones_place_and_counts_anew() {
        let mut rules = RuleSet::default();
        rules.put(Rule::new("a", Action::Cut).only(1));
        rules.put(Rule::new("b", Action::Drop));
        assert_eq!(names(&mut rules, &[call("GET", "/")]), [Some("a".to_owned())]);
        rules.put(Rule::new("a", Action::Pass).only(1));
        assert_eq!(rules.decide(&call("GET", "/")), Some(("a".to_owned(), Action::Pass)));
        rules.remove("a");
        assert_eq!(names(&mut rules, &[call("GET", "/")]), [Some("b".to_owned())]);
        rules.clear();
        assert_eq!(names(&mut rules, &[call("GET", "/")]), [None]);
    }
}
