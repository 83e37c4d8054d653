//! TLS settings as JavaScript passes them, in DER.
use std::ops::Deref;

use napi::bindgen_prelude::{FromNapiValue, TypeName, Uint8Array, ValidateNapiValue};
use napi::{sys, ValueType};

/// DER of a certificate, a key or a revocation list.
#[derive(Clone, Default, PartialEq)]
pub struct Der(pub Vec<u8>);

impl Deref for Der {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl TypeName for Der {
    fn type_name() -> &'static str {
        Uint8Array::type_name()
    }

    fn value_type() -> ValueType {
        Uint8Array::value_type()
    }
}

impl ValidateNapiValue for Der {
    unsafe fn validate(env: sys::napi_env, value: sys::napi_value) -> napi::Result<sys::napi_value> {
        // SAFETY: both come from the caller, who has the same duties
        unsafe { Uint8Array::validate(env, value) }
    }
}

impl FromNapiValue for Der {
    unsafe fn from_napi_value(env: sys::napi_env, value: sys::napi_value) -> napi::Result<Self> {
        // SAFETY: both come from the caller, who has the same duties; the bytes are copied here and now
        let bytes = unsafe { Uint8Array::from_napi_value(env, value) }?;
        Ok(Self(bytes.to_vec()))
    }
}

#[napi_derive::napi(object, object_to_js = false)]
#[derive(Clone, Default)]
pub struct ServerTls {
    pub cert: Vec<Der>,
    pub key: Der,
    pub client_ca: Option<Vec<Der>>,
    pub client_crl: Option<Vec<Der>>,
    /// Accept clients without a certificate too.
    pub is_client_optional: Option<bool>,
    /// For clients that ask for other names. Theirs are ignored.
    pub hosts: Option<Vec<HostTls>>,
    /// Certificates that answer `acme-tls/1` (RFC 8737).
    pub challenges: Option<Vec<HostTls>>,
}

/// Settings for server names: `name`, or `*.zone` for all names below.
#[napi_derive::napi(object, object_to_js = false)]
#[derive(Clone)]
pub struct HostTls {
    pub names: Vec<String>,
    pub tls: ServerTls,
}

#[napi_derive::napi(object, object_to_js = false)]
#[derive(Clone, Default, PartialEq)]
pub struct ClientTls {
    pub ca: Option<Vec<Der>>,
    pub system_roots: Option<bool>,
    pub cert: Option<Vec<Der>>,
    pub key: Option<Der>,
    pub insecure_skip_verify: Option<bool>,
    pub pin_sha256: Option<Vec<String>>,
}
