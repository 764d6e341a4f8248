//! The key that signs tokens, and the form that they have: JSON Web Tokens, ES256.
//!
//! The key is made on the first start, beside the authority's, readable by its owner alone, and kept: tokens outlive
//! a restart. Source: RFC 7515, 7517, 7518 §3.4.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::pki::{PkiError, private_key};

/// What stands before the point of a P-256 public key in its DER form (RFC 5480).
const PUBLIC_KEY_INFO: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

pub(crate) struct Key {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    id: String,
}

impl Key {
    pub(crate) fn open(path: &Path) -> Result<Self, PkiError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &private_key(path)?, &random);
        let pair = pair.map_err(|_| PkiError::NotASigningKey { path: path.to_owned() })?;
        let public = [&PUBLIC_KEY_INFO[..], pair.public_key().as_ref()].concat();
        let id = BASE64.encode(digest::digest(&digest::SHA256, &public));
        Ok(Self { pair, random, id })
    }

    /// # Errors
    /// When the machine has no randomness.
    pub(super) fn sign(&self, claims: &impl Serialize) -> Result<String, &'static str> {
        let part = |bytes: Vec<u8>| BASE64.encode(bytes);
        let header = json!({"alg": "ES256", "kid": self.id}).to_string();
        let claims = serde_json::to_vec(claims).map_err(|_| "the claims are no JSON")?;
        let signed = format!("{}.{}", part(header.into_bytes()), part(claims));
        let signature = self.pair.sign(&self.random, signed.as_bytes()).map_err(|_| "no randomness")?;
        Ok(format!("{signed}.{}", BASE64.encode(signature)))
    }

    /// What a token says, if this key signed it.
    pub(super) fn open_token<T: DeserializeOwned>(&self, token: &str) -> Option<T> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Value = serde_json::from_slice(&BASE64.decode(header).ok()?).ok()?;
        if header["alg"] != "ES256" {
            return None;
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key());
        key.verify(signed.as_bytes(), &BASE64.decode(signature).ok()?).ok()?;
        serde_json::from_slice(&BASE64.decode(claims).ok()?).ok()
    }

    /// The public half, as a JSON Web Key.
    pub(super) fn public(&self) -> Value {
        // An uncompressed point: a byte that says so, then both coordinates.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point.get(1..).unwrap_or_default().split_at(32.min(point.len().saturating_sub(1)));
        json!({
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": BASE64.encode(x), "y": BASE64.encode(y)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_ours_or_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let key = Key::open(&directory.path().join("sa.key")).unwrap();
        let same = Key::open(&directory.path().join("sa.key")).unwrap();
        let other = Key::open(&directory.path().join("other.key")).unwrap();
        let claims = json!({"sub": "jane"});
        let token = key.sign(&claims).unwrap();
        assert_eq!(same.open_token::<Value>(&token), Some(claims));
        assert_eq!(other.open_token::<Value>(&token), None);
        assert_eq!((key.id.len(), key.public()["x"].as_str().unwrap().len()), (43, 43));
        let parts: Vec<&str> = token.split('.').collect();
        let none = BASE64.encode("{\"alg\":\"none\"}");
        let joe = BASE64.encode("{\"sub\":\"joe\"}");
        for forged in [
            format!("{none}.{}.", parts[1]),
            format!("{none}.{}.{}", parts[1], parts[2]),
            format!("{}.{joe}.{}", parts[0], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            parts[1].to_owned(),
            "..".to_owned(),
            String::new(),
        ] {
            assert_eq!(key.open_token::<Value>(&forged), None, "{forged}");
        }
    }
}
