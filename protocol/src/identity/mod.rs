//! Who speaks: the cluster's certificate authority and the certificates it issues.
//!
//! Every process owns a directory with `ca.pem`, `cert.pem` and `key.pem`. The certificate says, in one URI of its
//! subject alternative names, which cluster the process belongs to, its role, its number and name, and for clients
//! what they may do ([`PeerIdentity`], format in [`uri`]). Nothing is taken from host names or addresses: those
//! change, and checking them would add nothing to a key that only this process has.
//!
//! ```text
//! zabfs://0123456789abcdef0123456789abcdef/client/7/laptop?ro=1&squash=1&subtree=%2Fhome
//! ```

mod authority;
mod certificate;
mod store;
pub mod uri;

use std::fmt;
use std::str::FromStr;

pub use authority::{Authority, Issued};
pub(crate) use certificate::PROVIDER;
pub use store::Identity;

/// The number that tells one cluster's certificates and data from another's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct ClusterId(pub [u8; 16]);

impl ClusterId {
    /// A new cluster's id, from the system's random source.
    pub fn random() -> Result<Self, IdentityError> {
        Ok(ClusterId(certificate::random_bytes()?))
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl FromStr for ClusterId {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || IdentityError::Malformed {
            what: format!("the cluster id '{text}'"),
            why: "it is not 32 hexadecimal digits".to_owned(),
        };
        if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| wrong())?;
        Ok(ClusterId(number.to_be_bytes()))
    }
}

/// What a process is allowed to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A member of the metadata quorum, or an observer of it.
    Metadata,
    /// A data server.
    Data,
    /// A mount or a program that uses the client library.
    Client,
    /// A person or tool that changes the cluster.
    Admin,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Metadata, Role::Data, Role::Client, Role::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Metadata => "metadata",
            Role::Data => "data",
            Role::Client => "client",
            Role::Admin => "admin",
        }
    }

    /// Servers accept connections; clients and administrators only open them.
    pub fn is_server(self) -> bool {
        matches!(self, Role::Metadata | Role::Data)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| IdentityError::Malformed {
            what: format!("the role '{text}'"),
            why: "it is none of metadata, data, client, admin".to_owned(),
        })
    }
}

/// A set of roles.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(u8);

impl Roles {
    pub const NONE: Roles = Roles(0);
    pub const ALL: Roles = Roles(0b1111);
    /// Metadata and data servers.
    pub const SERVERS: Roles = Roles::NONE.with(Role::Metadata).with(Role::Data);

    pub const fn with(self, role: Role) -> Self {
        Roles(self.0 | 1 << role as u8)
    }

    pub const fn contains(self, role: Role) -> bool {
        self.0 & (1 << role as u8) != 0
    }
}

impl From<Role> for Roles {
    fn from(role: Role) -> Self {
        Roles::NONE.with(role)
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> =
            Role::ALL.into_iter().filter(|role| self.contains(*role)).map(Role::as_str).collect();
        f.write_str(&names.join(" or "))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roles({self})")
    }
}

/// What a client's certificate restricts it to. Servers enforce it; the mount only shows it.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Modifying requests are refused with EROFS.
    pub read_only: bool,
    /// The directory that this client sees as its root: absolute, without `.`, `..` or a trailing slash.
    pub subtree: Option<String>,
    /// uid 0 and gid 0 of this client count as nobody.
    pub root_squash: bool,
}

impl Limits {
    /// No restriction.
    pub const NONE: Limits = Limits { read_only: false, subtree: None, root_squash: false };
}

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// What a verified certificate says about its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    pub cluster: ClusterId,
    pub role: Role,
    /// For people, e.g. `metadata-1`. Letters, digits, `.`, `_` and `-`; at most [`NAME_BYTES_MAX`].
    pub name: String,
    /// The number of a server among those of its role; of a client, the number its certificate was issued under.
    pub id: u32,
    /// Restrictions; [`Limits::NONE`] for anything but clients.
    pub limits: Limits,
    pub fingerprint: Fingerprint,
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {})", self.name, self.role, self.id)
    }
}

/// The longest name in a certificate.
pub const NAME_BYTES_MAX: usize = 64;

/// Why a certificate, key or authority cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot {action} {path}: {source}")]
    File { action: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("{what} cannot be used: {why}")]
    Malformed { what: String, why: String },
    #[error(
        "the certificate's subject alternative names hold no zabfs:// identity; issue one with `zabfs cert issue`"
    )]
    NoIdentity,
    #[error(
        "{path} exists already; choose another directory, or remove it if that cluster is no longer needed"
    )]
    Exists { path: std::path::PathBuf },
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}
