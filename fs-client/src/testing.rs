//! Certificates for tests.

use protocol::identity::{Authority, ClusterId, Identity, Limits, Role};
use std::sync::Arc;
use std::time::Duration;

/// An authority in a directory of its own.
pub(crate) struct Ca {
    authority: Authority,
    _directory: tempfile::TempDir,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let authority = Authority::create(directory.path(), ClusterId([7; 16])).expect("an authority");
        Self { authority, _directory: directory }
    }

    pub(crate) fn identity(&self, role: Role, id: u32) -> Arc<Identity> {
        let issued = self
            .authority
            .issue(role, "test", id, &Limits::NONE, Duration::from_secs(3600))
            .expect("a certificate");
        let identity = Identity::from_pem(&issued.ca_pem, &issued.certificate_pem, &issued.key_pem);
        Arc::new(identity.expect("it loads"))
    }
}
