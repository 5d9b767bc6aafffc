//! One lane's guest instance: made when first needed, kept while it is good, replaced when the module is.

use std::sync::Arc;

use super::shared::Shared;
use crate::guest::instance::Instance;
use crate::guest::module::Module;
use crate::guest::{Advice, Call, Failure, Finished, Verdict};
use crate::ledger::database::{Connection, DbError};

/// The module that a batch runs on, from its first member to its last.
#[derive(Clone)]
pub struct Current {
    module: Arc<Module>,
}

impl Current {
    /// What the inbox keeps of its digest.
    pub fn short_digest(&self) -> [u8; 8] {
        let mut short = [0; 8];
        short.copy_from_slice(&self.module.digest()[..8]);
        short
    }

    /// It exports a compensation.
    pub fn can_compensate(&self) -> bool {
        self.module.has_compensation()
    }
}

/// Runs calls on a reused instance.
pub struct Runner {
    shared: Arc<Shared>,
    current: Current,
    instance: Option<Instance>,
}

impl Runner {
    /// A runner for the module that is current now.
    pub fn new(shared: Arc<Shared>) -> Self {
        let current = Current { module: shared.modules.current() };
        Self { shared, current, instance: None }
    }

    /// Looks for a newer module; the batch that begins now runs on what this returns.
    pub fn module(&mut self) -> Current {
        let newest = self.shared.modules.current();
        if newest.digest() != self.current.module.digest() {
            self.instance = None;
        }
        self.current = Current { module: newest };
        self.current.clone()
    }

    /// Makes one call.
    pub async fn run(&mut self, call: Call, connection: Box<dyn Connection>) -> Finished {
        let mut instance = match self.instance.take() {
            Some(instance) => instance,
            None => match Instance::new(&self.current.module, self.shared.context.clone()).await {
                Ok(instance) => instance,
                Err(error) => return not_made(&error.to_string(), connection),
            },
        };
        let finished = instance.call(call, connection).await;
        self.shared.metrics.handler_took(finished.elapsed);
        if !finished.instance_spent {
            self.instance = Some(instance);
        }
        finished
    }

    /// Throws the instance away: it ran in a transaction that was rolled back.
    pub fn discard(&mut self) {
        self.instance = None;
    }
}

/// No instance could be made (its start function trapped, its memory does not fit the limit): the module's fault.
fn not_made(reason: &str, connection: Box<dyn Connection>) -> Finished {
    let failure = Failure {
        advice: Advice::ByPolicy,
        code: Some("instantiate".to_owned()),
        message: format!("the module could not be instantiated: {reason}"),
        detail: None,
    };
    Finished {
        verdict: Verdict::Failed(failure),
        outbox: Vec::new(),
        connection: Some(connection),
        touched_sql: false,
        instance_spent: true,
        elapsed: std::time::Duration::ZERO,
    }
}

/// A statement's failure in the form in which a handler's is kept.
pub(super) fn failure_of(error: &DbError) -> Failure {
    let code = error.code.as_deref().map_or_else(|| "sql".to_owned(), |code| format!("sql-{code}"));
    Failure { advice: Advice::ByPolicy, code: Some(code), message: error.message.clone(), detail: None }
}
