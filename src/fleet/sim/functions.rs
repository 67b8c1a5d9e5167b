//! Libraries of functions, as a simulated server keeps, dumps and restores them.

use std::collections::BTreeMap;

use super::keys::Change;
use super::server::Server;
use super::verbs::Refusal;
use crate::domain::moving::talk::Answer;
use crate::domain::node::Version;

impl Server {
    pub fn can_have_functions(&self) -> bool {
        self.is_from(Version::new(7, 0, 0), Version::new(7, 2, 0))
    }

    pub fn dump_functions(&self) -> Result<Answer, Refusal> {
        self.knows_functions()?;
        Ok(Answer::Bytes(serde_json::to_vec(&self.libraries).unwrap_or_default()))
    }

    pub fn restore_functions(&mut self, dump: &[u8]) -> Result<(), Refusal> {
        self.takes_functions()?;
        match serde_json::from_slice::<BTreeMap<String, String>>(dump) {
            Ok(libraries) if libraries.is_empty() => Ok(()),
            Ok(libraries) => {
                self.write(Change::Load(libraries));
                Ok(())
            }
            Err(_) => Err(Refusal::err("DUMP payload version or checksum are wrong")),
        }
    }

    pub fn delete_library(&mut self, name: &str) -> Result<(), Refusal> {
        self.takes_functions()?;
        if !self.libraries.contains_key(name) {
            return Err(Refusal::err("Library not found"));
        }
        self.write(Change::Unload(name.to_owned()));
        Ok(())
    }

    pub fn flush_functions(&mut self) -> Result<(), Refusal> {
        self.takes_functions()?;
        self.write(Change::UnloadAll);
        Ok(())
    }

    fn takes_functions(&self) -> Result<(), Refusal> {
        self.knows_functions()?;
        if self.is_replica() {
            let why = "You can't write against a read only replica.";
            return Err(Refusal::new("READONLY", why));
        }
        Ok(())
    }

    fn knows_functions(&self) -> Result<(), Refusal> {
        if self.can_have_functions() {
            return Ok(());
        }
        Err(Refusal::err("unknown command `FUNCTION`"))
    }
}
