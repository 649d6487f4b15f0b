//! `Debug` of the messages that hold secrets: says which one, never what it holds.

use std::fmt;

use crate::proto::{Credential, JoinRequest, Resource};

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Resource({}/{}, {} bytes)", self.kind, self.id, self.body.len())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credential({}, {})", self.id, self.name)
    }
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinRequest({})", self.display_name)
    }
}
