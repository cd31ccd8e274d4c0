//! The identity directory: `ca.pem`, `cert.pem`, `key.pem`.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::certificate::{PROVIDER, sha256};
use super::{IdentityError, PeerIdentity};

pub(super) const CA_FILE: &str = "ca.pem";
pub(super) const CERTIFICATE_FILE: &str = "cert.pem";
pub(super) const KEY_FILE: &str = "key.pem";

/// This process's certificate and key, and the authority whose certificates it accepts.
pub struct Identity {
    me: PeerIdentity,
    roots: Arc<RootCertStore>,
    certified: Arc<SingleCertAndKey>,
    /// Derived from the key: the same after a restart, unknown to anyone else.
    reset_secret: [u8; 32],
}

impl Identity {
    /// Loads `ca.pem`, `cert.pem` and `key.pem` from `dir`.
    ///
    /// # Errors
    /// A file is missing or damaged, key and certificate do not match, or the certificate holds no identity.
    pub fn load(dir: &Path) -> Result<Identity, IdentityError> {
        let read = |name: &str| read_text(&dir.join(name));
        Identity::from_pem(&read(CA_FILE)?, &read(CERTIFICATE_FILE)?, &read(KEY_FILE)?)
    }

    /// The same from the files' contents.
    pub fn from_pem(ca: &str, certificate: &str, key: &str) -> Result<Identity, IdentityError> {
        let ca = certificate_from_pem(ca.as_bytes(), "the authority's certificate")?;
        let certificate = certificate_from_pem(certificate.as_bytes(), "the certificate")?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes()).map_err(|error| {
            IdentityError::Malformed { what: "the private key".to_owned(), why: error.to_string() }
        })?;
        let me = PeerIdentity::from_certificate(&certificate)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca)?;
        let mut seed = b"zabfs stateless reset".to_vec();
        seed.extend_from_slice(key.secret_pkcs8_der());
        let reset_secret = sha256(&seed);
        let certified = CertifiedKey::from_der(vec![certificate], PrivateKeyDer::Pkcs8(key), &PROVIDER)?;
        Ok(Identity { me, roots: Arc::new(roots), certified: Arc::new(certified.into()), reset_secret })
    }

    /// What the own certificate says.
    pub fn me(&self) -> &PeerIdentity {
        &self.me
    }

    pub(crate) fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }

    pub(crate) fn certified(&self) -> &Arc<SingleCertAndKey> {
        &self.certified
    }

    pub(crate) fn reset_secret(&self) -> &[u8; 32] {
        &self.reset_secret
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("me", &self.me).finish_non_exhaustive()
    }
}

/// Who may read a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    OwnerOnly,
    Everyone,
}

pub(super) fn certificate_from_pem(pem: &[u8], what: &str) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem)
        .map_err(|error| IdentityError::Malformed { what: what.to_owned(), why: error.to_string() })
}

pub(super) fn read_text(path: &Path) -> Result<String, IdentityError> {
    std::fs::read_to_string(path).map_err(|source| file_error("read", path, source))
}

pub(super) fn create_directory(dir: &Path) -> Result<(), IdentityError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| file_error("create", dir, source))
}

/// Writes a file so that it is there completely or not at all, also after a crash.
pub(super) fn write_atomically(path: &Path, text: &str, access: Access) -> Result<(), IdentityError> {
    let temporary = path.with_extension("tmp");
    let mode = match access {
        Access::OwnerOnly => 0o600,
        Access::Everyone => 0o644,
    };
    // One left behind by a crash could carry another mode.
    let _ = std::fs::remove_file(&temporary);
    let write = || -> std::io::Result<()> {
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        match path.parent() {
            Some(parent) => std::fs::File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| file_error("write", path, source))
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> IdentityError {
    IdentityError::File { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    use super::super::{Authority, ClusterId, IdentityError, Limits, Role};
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn what_the_authority_issues_loads_with_its_role_and_limits() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterId([9; 16]);
        Authority::create(&dir.path().join("ca"), cluster).unwrap();
        let authority = Authority::open(&dir.path().join("ca")).unwrap();
        assert_eq!(authority.cluster(), cluster);
        let limits = Limits { read_only: true, subtree: Some("/a b".to_owned()), root_squash: true };
        let tls = dir.path().join("client/tls");
        authority.issue(Role::Client, "laptop", 4, &limits, HOUR).unwrap().write_to(&tls).unwrap();

        let identity = Identity::load(&tls).unwrap();
        let me = identity.me();
        assert_eq!((me.cluster, me.role, me.id, me.name.as_str()), (cluster, Role::Client, 4, "laptop"));
        assert_eq!(me.limits, limits);
        let key = std::fs::metadata(tls.join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(key & 0o777, 0o600);
    }

    #[test]
    fn an_authority_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        Authority::create(dir.path(), ClusterId([1; 16])).unwrap();
        let again = Authority::create(dir.path(), ClusterId([2; 16]));
        assert!(matches!(again, Err(IdentityError::Exists { .. })));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(dir.path(), ClusterId([1; 16])).unwrap();
        let issue = |id| authority.issue(Role::Data, "data", id, &Limits::NONE, HOUR).unwrap();
        let (one, two) = (issue(1), issue(2));
        assert!(Identity::from_pem(&one.ca_pem, &one.certificate_pem, &one.key_pem).is_ok());
        assert!(Identity::from_pem(&one.ca_pem, &one.certificate_pem, &two.key_pem).is_err());
        assert!(Identity::from_pem(&one.ca_pem, "no certificate", &one.key_pem).is_err());
    }
}
