//! A lane's guest: the current module's instance, kept as long as it is good.

use std::sync::Arc;

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
}

impl LaneGuest {
    /// A guest without an instance yet.
    pub fn new(slot: Arc<ModuleSlot>, consumer: Arc<ConsumerContext>) -> Self {
        Self { pinned: slot.current(), slot, consumer, instance: None }
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

    /// Makes one attempt on the pinned module. [`Finished::instance`] is none: the lane's guest keeps it.
    pub async fn call(&mut self, call: Call, connection: Box<dyn Connection>) -> Finished {
        let module = Arc::clone(&self.pinned);
        let kept = self.instance.take().filter(|instance| Arc::ptr_eq(instance.module(), &module));
        let mut finished = match kept {
            Some(instance) => instance.call(call, connection).await,
            None => Instance::start_and_call(&module, &self.consumer, call, connection).await,
        };
        self.instance = finished.instance.take();
        finished
    }

    /// Drops the instance: what it remembers stems from a transaction that was rolled back.
    pub fn discard(&mut self) {
        self.instance = None;
    }
}
