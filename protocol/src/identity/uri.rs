//! The identity as a URI, as it stands in a certificate.
//!
//! ```text
//! zabfs://CLUSTER/ROLE/ID/NAME[?KEY=VALUE[&KEY=VALUE]…]
//!
//! CLUSTER  32 hexadecimal digits
//! ROLE     metadata, data, client or admin
//! ID       decimal u32
//! NAME     1 to 64 of A-Z a-z 0-9 . _ -
//! ro=1          read only
//! squash=1      root squash
//! subtree=PATH  absolute path, percent-encoded except A-Z a-z 0-9 . _ - ~
//! ```
//!
//! A reader refuses keys that it does not know: each restricts the holder, and ignoring one would grant more than
//! was issued.

use super::{ClusterId, IdentityError, Limits, NAME_BYTES_MAX, Role};

/// The scheme that starts the URI.
pub const SCHEME: &str = "zabfs://";

/// What the URI says; a [`PeerIdentity`](super::PeerIdentity) without the certificate around it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub cluster: ClusterId,
    pub role: Role,
    pub id: u32,
    pub name: String,
    pub limits: Limits,
}

impl Claim {
    /// Checks what the type does not: the name, the subtree, and that only clients are limited.
    pub fn validate(&self) -> Result<(), IdentityError> {
        if !name_is_valid(&self.name) {
            return Err(malformed(
                format!("the name '{}'", self.name.escape_default()),
                "names are 1 to 64 letters, digits, '.', '_' or '-'",
            ));
        }
        if let Some(path) = &self.limits.subtree
            && !subtree_is_valid(path)
        {
            return Err(malformed(
                format!("the subtree '{}'", path.escape_default()),
                "it must be an absolute path without '.', '..', empty parts or a trailing slash",
            ));
        }
        if self.role != Role::Client && self.limits != Limits::NONE {
            return Err(malformed(
                format!("a certificate of role {}", self.role),
                "only clients can be limited to a subtree, to reading or to squashed root",
            ));
        }
        Ok(())
    }

    /// The URI.
    ///
    /// # Errors
    /// The claim is not valid.
    pub fn to_uri(&self) -> Result<String, IdentityError> {
        self.validate()?;
        let mut uri = format!("{SCHEME}{}/{}/{}/{}", self.cluster, self.role, self.id, self.name);
        let mut separator = '?';
        let mut add = |pair: &str| {
            uri.push(separator);
            uri.push_str(pair);
            separator = '&';
        };
        if self.limits.read_only {
            add("ro=1");
        }
        if self.limits.root_squash {
            add("squash=1");
        }
        if let Some(path) = &self.limits.subtree {
            add(&format!("subtree={}", percent_encode(path)));
        }
        Ok(uri)
    }

    /// Reads a URI.
    ///
    /// # Errors
    /// Anything in it that this version does not know, and whatever [`Claim::validate`] refuses.
    pub fn parse(uri: &str) -> Result<Claim, IdentityError> {
        let wrong = |why: &str| malformed(format!("the identity '{}'", uri.escape_default()), why);
        let rest = uri.strip_prefix(SCHEME).ok_or_else(|| wrong("it does not start with zabfs://"))?;
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let [cluster, role, id, name] = parts[..] else {
            return Err(wrong("it is not CLUSTER/ROLE/ID/NAME"));
        };
        if !id.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(wrong("its id is not a decimal number"));
        }
        let claim = Claim {
            cluster: cluster.parse()?,
            role: role.parse()?,
            id: id.parse().map_err(|_| wrong("its id is not a 32-bit number"))?,
            name: name.to_owned(),
            limits: match query {
                Some(query) => parse_limits(query).map_err(wrong)?,
                None => Limits::NONE,
            },
        };
        claim.validate()?;
        Ok(claim)
    }
}

fn parse_limits(query: &str) -> Result<Limits, &'static str> {
    let mut limits = Limits::NONE;
    for pair in query.split('&') {
        match pair.split_once('=') {
            Some(("ro", "1")) if !limits.read_only => limits.read_only = true,
            Some(("squash", "1")) if !limits.root_squash => limits.root_squash = true,
            Some(("subtree", path)) if limits.subtree.is_none() => {
                limits.subtree =
                    Some(percent_decode(path).ok_or("its subtree is not percent-encoded UTF-8")?);
            }
            _ => return Err("it holds a limit that this version does not know, or one twice"),
        }
    }
    Ok(limits)
}

fn malformed(what: String, why: &str) -> IdentityError {
    IdentityError::Malformed { what, why: why.to_owned() }
}

fn name_is_valid(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn subtree_is_valid(path: &str) -> bool {
    let Some(relative) = path.strip_prefix('/') else { return false };
    path.len() <= 4096
        && relative
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'))
}

fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        decoded.push((high * 16 + low) as u8);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(role: Role, limits: Limits) -> Claim {
        Claim { cluster: ClusterId([0xab; 16]), role, id: 7, name: "laptop.x-1".to_owned(), limits }
    }

    #[test]
    fn the_uri_is_as_documented() {
        let limits = Limits { read_only: true, subtree: Some("/home/ä b".to_owned()), root_squash: true };
        let uri = claim(Role::Client, limits.clone()).to_uri().unwrap();
        assert_eq!(
            uri,
            "zabfs://abababababababababababababababab/client/7/laptop.x-1?ro=1&squash=1&subtree=%2Fhome%2F%C3%A4%20b"
        );
        assert_eq!(Claim::parse(&uri).unwrap().limits, limits);
    }

    #[test]
    fn what_this_version_does_not_know_is_refused() {
        let base = claim(Role::Client, Limits::NONE).to_uri().unwrap();
        for wrong in [
            "?",
            "?ro=0",
            "?ro=1&ro=1",
            "?quota=5",
            "?subtree=home",
            "?subtree=%2F..",
            "?subtree=%2",
            "/more",
            "?subtree=%2Fa%2F",
            "?subtree=%FF",
            "%41",
        ] {
            assert!(Claim::parse(&format!("{base}{wrong}")).is_err(), "{wrong} was accepted");
        }
        let limited = Limits { read_only: true, ..Limits::NONE };
        assert!(claim(Role::Metadata, limited).to_uri().is_err(), "servers are not limited");
    }

    proptest! {
        #[test]
        fn any_valid_claim_survives(
            cluster: [u8; 16], id: u32, name in "[A-Za-z0-9._-]{1,64}",
            read_only: bool, root_squash: bool,
            parts in prop::option::of(prop::collection::vec("[^/\0.]{1,12}", 1..5)),
        ) {
            let subtree = parts.map(|parts| format!("/{}", parts.join("/")));
            let limits = Limits { read_only, subtree, root_squash };
            let claim = Claim { cluster: ClusterId(cluster), role: Role::Client, id, name, limits };
            prop_assert_eq!(Claim::parse(&claim.to_uri().unwrap()).unwrap(), claim);
        }

        #[test]
        fn garbage_never_panics(text in "(zabfs://)?[0-9a-f/?=&%a-z]{0,80}", other in ".{0,60}") {
            let _ = Claim::parse(&text);
            let _ = Claim::parse(&other);
        }
    }
}
