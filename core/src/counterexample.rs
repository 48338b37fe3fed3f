//! What a model check shows when something happens that must not.

use std::fmt;

/// The shortest way to something that must not happen.
#[derive(Debug, Clone)]
pub struct Counterexample {
    pub rule: String,
    pub path: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {}", self.rule)?;
        for line in &self.path {
            writeln!(f, "    {line}")?;
        }
        Ok(())
    }
}
