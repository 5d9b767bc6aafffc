//! A lane's guest: the current module's instance, kept as long as it is good.

use std::sync::Arc;

use super::ahead::{Ahead, Line};
use super::grants::ConsumerContext;
use super::instance::Instance;
use super::module::Module;
use super::swap::ModuleSlot;
use super::{Call, Finished};
use crate::ledger::database::Connection;

/// Makes attempts for one lane, on a fresh instance where it needs one.
pub struct LaneGuest {
    slot: Arc<ModuleSlot>,
    consumer: Arc<ConsumerContext>,
    pinned: Arc<Module>,
    instance: Option<Instance>,
    ahead: Ahead,
}

impl LaneGuest {
    /// A guest without an instance yet.
    pub fn new(slot: Arc<ModuleSlot>, consumer: Arc<ConsumerContext>) -> Self {
        Self { pinned: slot.current(), slot, consumer, instance: None, ahead: Ahead::default() }
    }

    /// Takes the newest module for the calls that follow, until it is asked again: a batch runs on one module, the one
    /// that its inbox rows name.
    pub fn pin(&mut self) -> Arc<Module> {
        self.pinned = self.slot.current();
        Arc::clone(&self.pinned)
    }

    /// The module that calls run on until the next [`Self::pin`].
    pub fn pinned(&self) -> &Arc<Module> {
        &self.pinned
    }

    /// Makes one attempt on the pinned module. The lane's guest keeps the instance and
    /// what runs ahead: in [`Finished`] there is neither.
    pub async fn call(&mut self, call: Call, connection: Box<dyn Connection>) -> Finished {
        let module = Arc::clone(&self.pinned);
        let line = Line { connection, ahead: std::mem::take(&mut self.ahead) };
        let kept = self.instance.take().filter(|instance| Arc::ptr_eq(instance.module(), &module));
        let mut finished = match kept {
            Some(instance) => instance.call(call, line).await,
            None => Instance::start_and_call(&module, &self.consumer, call, line).await,
        };
        self.instance = finished.instance.take();
        self.ahead = std::mem::take(&mut finished.ahead);
        finished
    }

    /// What runs ahead of the database on the lane's connection.
    pub fn ahead(&mut self) -> &mut Ahead {
        &mut self.ahead
    }

    /// Drops the instance, and what waits to be sent: what they remember stems from a transaction that was rolled back.
    pub fn discard(&mut self) {
        self.instance = None;
        self.ahead.forget();
    }
}
