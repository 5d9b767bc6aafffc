//! Whether this process does its work, and if not, what it waits for.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The components of this process and how each of them is. Clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    board: Arc<Mutex<Board>>,
}

#[derive(Debug, Default)]
struct Board {
    components: BTreeMap<String, Entry>,
    registrations: u64,
}

#[derive(Debug)]
struct Entry {
    /// Whose word counts: a predecessor of the same name no longer has a say.
    registration: u64,
    condition: Condition,
}

/// How a component is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    Up,
    Waiting { reason: String },
}

/// One component's hand on its own condition. Dropping it means that the component ended, which is not ready either;
/// one that is meant to go takes itself off the list with [`Component::retire`].
#[derive(Debug)]
pub struct Component {
    readiness: Readiness,
    name: String,
    registration: u64,
    retired: bool,
}

impl Readiness {
    /// No component yet, and so not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a component by a name that says something to an operator: `consumer reduce-stock`, `database shop`.
    /// It waits, until it says otherwise. A name that is taken is taken over.
    pub fn component(&self, name: impl fmt::Display) -> Component {
        let name = name.to_string();
        let mut board = self.board();
        board.registrations += 1;
        let registration = board.registrations;
        let condition = Condition::Waiting { reason: "starting".to_owned() };
        board.components.insert(name.clone(), Entry { registration, condition });
        drop(board);
        Component { readiness: self.clone(), name, registration, retired: false }
    }

    /// What is waited for, by component; empty when everything is up.
    pub fn waiting_for(&self) -> BTreeMap<String, String> {
        let components = &self.board().components;
        if components.is_empty() {
            return BTreeMap::from([("hapax".to_owned(), "starting".to_owned())]);
        }
        components.iter().filter_map(|(name, entry)| Some((name.clone(), entry.condition.reason()?))).collect()
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condition {
    /// Why it is not up, if it is not.
    fn reason(&self) -> Option<String> {
        match self {
            Self::Up => None,
            Self::Waiting { reason } => Some(reason.clone()),
        }
    }
}

impl Component {
    /// The component's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It works, and will say so if it no longer does.
    pub fn up(&self) {
        self.set(Condition::Up);
    }

    /// It waits for `reason`: in words for an operator, without secrets.
    pub fn waiting(&self, reason: impl fmt::Display) {
        self.set(Condition::Waiting { reason: reason.to_string() });
    }

    /// Takes the component off the list: it is no longer part of the work.
    pub fn retire(mut self) {
        self.retired = true;
        let mut board = self.readiness.board();
        if board.components.get(&self.name).is_some_and(|entry| entry.registration == self.registration) {
            board.components.remove(&self.name);
        }
    }

    fn set(&self, condition: Condition) {
        let mut board = self.readiness.board();
        let ours = board.components.get_mut(&self.name).filter(|entry| entry.registration == self.registration);
        if let Some(entry) = ours {
            entry.condition = condition;
        }
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        if !self.retired {
            self.waiting("stopped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(readiness: &Readiness) -> Vec<String> {
        readiness.waiting_for().into_iter().map(|(name, reason)| format!("{name}: {reason}")).collect()
    }

    #[test]
    fn ready_means_that_every_component_is_up() {
        let readiness = Readiness::new();
        assert_eq!(waiting(&readiness), ["hapax: starting"]);
        let (a, b) = (readiness.component("consumer a"), readiness.component("consumer b"));
        a.up();
        b.waiting("queue \"b\"");
        assert_eq!(waiting(&readiness), ["consumer b: queue \"b\""]);
        b.up();
        assert!(waiting(&readiness).is_empty());
        drop(b);
        assert_eq!(waiting(&readiness), ["consumer b: stopped"]);
        let (first, second) = (readiness.component("consumer b"), readiness.component("consumer b"));
        second.up();
        drop(first);
        assert!(waiting(&readiness).is_empty(), "a successor speaks for itself");
        second.retire();
        assert!(waiting(&readiness).is_empty());
        assert_eq!(a.name(), "consumer a");
    }
}
