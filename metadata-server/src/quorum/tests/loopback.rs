//! Endpoints of one cluster on loopback.

use std::sync::Arc;
use std::time::Duration;

use protocol::identity::{Authority, ClusterId, Identity, Limits, Role};
use protocol::transport::{Endpoint, TransportConfig};

/// Nothing on loopback takes this long; a test that waits longer has failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Loopback {
    authority: Authority,
    _directory: tempfile::TempDir,
}

impl Loopback {
    pub(crate) fn new() -> Loopback {
        let directory = tempfile::tempdir().expect("temporary directories work");
        let authority =
            Authority::create(&directory.path().join("ca"), ClusterId([9; 16])).expect("a new authority");
        Loopback { authority, _directory: directory }
    }

    pub(crate) fn endpoint(&self, role: Role, id: u32) -> Endpoint {
        let name = format!("{role}-{id}");
        let hour = Duration::from_secs(3600);
        let issued = self.authority.issue(role, &name, id, &Limits::NONE, hour).expect("a certificate");
        let identity = Identity::from_pem(&issued.ca_pem, &issued.certificate_pem, &issued.key_pem);
        let identity = Arc::new(identity.expect("a fresh certificate"));
        let address = "127.0.0.1:0".parse().expect("an address");
        Endpoint::bind(address, identity, TransportConfig::default()).expect("loopback has free ports")
    }
}
