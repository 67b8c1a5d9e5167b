//! What lies between the engine and the simulated nodes.

use std::sync::Arc;

use reeve::fleet::Fleet;
use reeve::fleet::sim::SimFleet;

use super::application::{Application, Busy};
use super::mistaken::{Mistake, Mistaken};
use crate::support::record::{Record, Recorder};
use crate::support::shim::Shimmed;

pub struct Layers {
    pub application: Application,
    /// What was really said, mistakes and all.
    pub record: Record,
    pub mistake: Option<Mistake>,
}

impl Layers {
    pub fn over(&self, fleet: Arc<dyn Fleet>, sim: &Arc<SimFleet>) -> Arc<dyn Fleet> {
        let application = self.application.clone();
        let fleet = Arc::new(Shimmed(Busy { fleet, application }));
        let fleet = Arc::new(Shimmed(Recorder { fleet, record: self.record.clone() }));
        match self.mistake {
            Some(mistake) => Arc::new(Shimmed(Mistaken::new(fleet, sim.clone(), mistake))),
            None => fleet,
        }
    }
}
