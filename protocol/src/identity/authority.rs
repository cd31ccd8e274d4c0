//! The cluster's certificate authority: one key in one directory, made by `zabfs init`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};

use super::certificate::random_bytes;
use super::store::{
    Access, CA_FILE, CERTIFICATE_FILE, KEY_FILE, create_directory, read_text, write_atomically,
};
use super::uri::Claim;
use super::{ClusterId, IdentityError, Limits, PeerIdentity, Role};

/// The authority's private key, beside `ca.pem`.
const CA_KEY_FILE: &str = "ca.key";

/// Certificates count from this long before they were made, so that a machine whose clock is behind accepts them.
const BACKDATED: Duration = Duration::from_secs(3600);

/// The authority itself lives this long; a new one means new certificates everywhere.
const CA_VALIDITY: Duration = Duration::from_secs(20 * 365 * 86_400);

/// The certificate authority of one cluster. Whoever holds its directory can be anyone in the cluster: keep it on
/// one machine, offline if possible.
pub struct Authority {
    cluster: ClusterId,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, as the files of an identity directory hold them.
pub struct Issued {
    pub ca_pem: String,
    pub certificate_pem: String,
    pub key_pem: String,
}

impl Authority {
    /// Makes an authority for a new cluster and writes `ca.pem` and `ca.key` (0600) into `dir`.
    ///
    /// # Errors
    /// `dir` holds an authority already, or cannot be written.
    pub fn create(dir: &Path, cluster: ClusterId) -> Result<Authority, IdentityError> {
        let (certificate_path, key_path) = (dir.join(CA_FILE), dir.join(CA_KEY_FILE));
        if let Some(path) = [&certificate_path, &key_path].into_iter().find(|path| path.exists()) {
            return Err(IdentityError::Exists { path: path.clone() });
        }
        let key = KeyPair::generate()?;
        let certificate = ca_params(cluster)?.self_signed(&key)?;
        create_directory(dir)?;
        // The key first: a certificate whose key is missing would look like a finished authority.
        write_atomically(&key_path, &key.serialize_pem(), Access::OwnerOnly)?;
        write_atomically(&certificate_path, &certificate.pem(), Access::Everyone)?;
        Authority::from_pem(certificate.pem(), &key.serialize_pem())
    }

    /// Opens the authority in `dir`.
    pub fn open(dir: &Path) -> Result<Authority, IdentityError> {
        let certificate_pem = read_text(&dir.join(CA_FILE))?;
        let key_pem = read_text(&dir.join(CA_KEY_FILE))?;
        Authority::from_pem(certificate_pem, &key_pem)
    }

    /// The cluster whose certificates this authority issues.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Issues a certificate and its key. `validity` counts from now.
    ///
    /// # Errors
    /// The name or the limits are not allowed for the role.
    pub fn issue(
        &self,
        role: Role,
        name: &str,
        id: u32,
        limits: &Limits,
        validity: Duration,
    ) -> Result<Issued, IdentityError> {
        let claim = Claim { cluster: self.cluster, role, id, name: name.to_owned(), limits: limits.clone() };
        let key = KeyPair::generate()?;
        let certificate = leaf_params(&claim, validity)?.signed_by(&key, &self.issuer)?;
        Ok(Issued {
            ca_pem: self.certificate_pem.clone(),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    fn from_pem(certificate_pem: String, key_pem: &str) -> Result<Authority, IdentityError> {
        let der =
            super::store::certificate_from_pem(certificate_pem.as_bytes(), "the authority's certificate")?;
        let cluster = PeerIdentity::from_certificate(&der)?.cluster;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, KeyPair::from_pem(key_pem)?)?;
        Ok(Authority { cluster, certificate_pem, issuer })
    }
}

impl Issued {
    /// Writes `ca.pem`, `cert.pem` and `key.pem` (0600) into `dir`, each at once or not at all. What is there
    /// already is replaced.
    pub fn write_to(&self, dir: &Path) -> Result<(), IdentityError> {
        create_directory(dir)?;
        let file = |name: &str| -> PathBuf { dir.join(name) };
        write_atomically(&file(CA_FILE), &self.ca_pem, Access::Everyone)?;
        write_atomically(&file(KEY_FILE), &self.key_pem, Access::OwnerOnly)?;
        write_atomically(&file(CERTIFICATE_FILE), &self.certificate_pem, Access::Everyone)
    }
}

fn ca_params(cluster: ClusterId) -> Result<CertificateParams, IdentityError> {
    // The authority names itself like its certificates do, so that opening it tells the cluster. It can be no
    // peer: it lacks the extended key usages that the handshake demands.
    let claim = Claim { cluster, role: Role::Admin, id: 0, name: "ca".to_owned(), limits: Limits::NONE };
    let mut params = common_params(&claim, CA_VALIDITY)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(claim: &Claim, validity: Duration) -> Result<CertificateParams, IdentityError> {
    let mut params = common_params(claim, validity)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if claim.role.is_server() {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    Ok(params)
}

fn common_params(claim: &Claim, validity: Duration) -> Result<CertificateParams, IdentityError> {
    let uri = claim.to_uri()?;
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, format!("zabfs {}", claim.cluster));
    params.distinguished_name.push(DnType::CommonName, claim.name.as_str());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let start = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = start + now.saturating_sub(BACKDATED);
    params.not_after = start + (now + validity);
    let mut serial: [u8; 16] = random_bytes()?;
    // A serial number is a positive integer without a leading zero (RFC 5280, 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

#[cfg(test)]
pub(super) fn sample_certificate() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path(), ClusterId([5; 16])).unwrap();
    let limits = Limits { read_only: true, subtree: Some("/home".to_owned()), root_squash: false };
    let issued = authority.issue(Role::Client, "laptop", 3, &limits, Duration::from_secs(60)).unwrap();
    super::store::certificate_from_pem(issued.certificate_pem.as_bytes(), "sample").unwrap().to_vec()
}
