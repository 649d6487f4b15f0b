//! Credentials: keys at providers. The secret is sealed on its way in and never comes out here.

use compiler::input::Credential;
use shared::ids::CredentialId;

use super::known::Known;
use super::store::{Object, Writing};
use super::{DISABLED, FilterOn, ListFilter, Noun, SecretField, id_text};
use crate::error::ApiError;
use crate::vault::Secret;

/// Shorter secrets give too much away with four characters.
const HINTED_FROM: usize = 16;

pub(super) struct Credentials;

impl Noun for Credentials {
    type Doc = Credential;
    const KIND: &'static str = "credential";
    const PATHS: [&'static str; 2] =
        ["/api/v1/workspaces/{workspace}/credentials", "/api/v1/workspaces/{workspace}/credentials/{id}"];
    const TAG: &'static str = "credentials";
    const NAME_FIELD: &'static str = "name";
    const FILTERS: &'static [ListFilter] = &[
        ListFilter { query: "provider_id", on: FilterOn::Parent, description: "Those of this provider" },
        ListFilter { query: "name", on: FilterOn::Name, description: "Those with this name" },
        DISABLED,
    ];
    const SET_BY_US: &'static [&'static str] = &["secret_version", "secret_hint"];
    const SECRET: Option<SecretField> = Some(SecretField {
        name: "secret",
        description: "The provider's key. Sealed when it arrives and never shown again. Left out of a change: stays.",
    });

    fn new_id(now_ms: u64) -> String {
        id_text!(CredentialId, now_ms)
    }

    fn parent(doc: &Credential) -> String {
        doc.provider_id.to_string()
    }

    fn name<'a>(doc: &'a Credential, _: &'a str) -> &'a str {
        &doc.name
    }

    async fn load(known: &mut Known, writing: &mut Writing, doc: &Credential) -> Result<(), ApiError> {
        known.load_provider(writing, &doc.provider_id.to_string()).await
    }

    fn take_secret(doc: &mut Credential, version: i64, secret: &Secret) {
        doc.secret_version = version;
        let text = secret.expose_str().unwrap_or_default();
        let hint = text.len().checked_sub(4).filter(|_| text.len() >= HINTED_FROM).and_then(|at| text.get(at..));
        doc.secret_hint = hint.unwrap_or_default().to_owned();
    }

    /// Nobody refers to credentials. The sealed secret goes with the object.
    async fn release(writing: &mut Writing, object: &Object) -> Result<(), ApiError> {
        writing.forget_secrets(&object.id).await
    }
}
