//! The configuration resources over REST. A noun is its document type and a few facts (`Noun`); the
//! handlers exist once, in `crud`. Nothing here knows SQL beyond `store`, nor how documents compile.

mod alias;
mod api_key;
mod audit;
mod catalog;
mod credential;
mod crud;
mod known;
mod model;
mod project;
mod provider;
pub mod seed;
mod standing;
pub mod store;
#[cfg(test)]
mod tests;
mod view;
mod workspace;

use std::future::Future;

use compiler::check::Check;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::rest::Route;
use crate::vault::Secret;
use known::Known;
use store::{Object, Writing};

pub use view::rfc3339;

/// All routes of the configuration resources.
pub fn routes() -> Vec<Route> {
    let mut all = workspace::routes();
    all.extend(crud::routes::<project::Projects>());
    all.extend(crud::routes::<provider::Providers>());
    all.extend(crud::routes::<credential::Credentials>());
    all.extend(crud::routes::<model::Models>());
    all.extend(crud::routes::<alias::Aliases>());
    all.extend(crud::routes::<api_key::ApiKeys>());
    all.extend(audit::routes());
    all.extend(catalog::routes());
    all
}

/// Column that a list filter compares with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FilterOn {
    Parent,
    Name,
    Disabled,
}

/// A query parameter of a list.
struct ListFilter {
    query: &'static str,
    on: FilterOn,
    description: &'static str,
}

const DISABLED: ListFilter = ListFilter {
    query: "disabled",
    on: FilterOn::Disabled,
    description: "`true`: only disabled ones; `false`: only others",
};

/// What differs between one kind of resource and another.
trait Noun: Send + Sync + 'static {
    /// The document: what callers send and the database keeps.
    type Doc: Check + Serialize + DeserializeOwned + ToSchema + Clone + Send + Sync + 'static;

    /// In the database, the audit and snapshots.
    const KIND: &'static str;
    /// Path of the collection and of one item.
    const PATHS: [&'static str; 2];
    /// Group in the reference.
    const TAG: &'static str;
    /// The document's field that is unique beside siblings.
    const NAME_FIELD: &'static str;
    /// Whether an item can be addressed by its name in place of its id.
    const BY_NAME: bool = false;
    /// What lists can be filtered by.
    const FILTERS: &'static [ListFilter];
    /// Fields of the document that only the control plane sets.
    const SET_BY_US: &'static [&'static str] = &[];
    /// Those of them that are not shown.
    const HIDDEN: &'static [&'static str] = &[];
    /// A secret that callers send and never see again.
    const SECRET: Option<SecretField> = None;

    /// A new id.
    fn new_id(now_ms: u64) -> String;

    /// Id of the object it belongs to, or empty.
    fn parent(doc: &Self::Doc) -> String;

    /// Its unique name; the id where nothing else is unique.
    fn name<'a>(doc: &'a Self::Doc, id: &'a str) -> &'a str;

    /// Fills in what depends on other fields, and what may be left out because it cannot change.
    fn complete(doc: &mut Self::Doc, old: Option<&Self::Doc>, known: &Known) {
        _ = (doc, old, known);
    }

    /// Looks up what the document may refer to.
    fn load(
        known: &mut Known,
        writing: &mut Writing,
        doc: &Self::Doc,
    ) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Makes what is shown once when an object is made: its name in the answer, and itself.
    fn issue(doc: &mut Self::Doc) -> Option<(&'static str, Secret)> {
        _ = doc;
        None
    }

    /// Takes note of a new version of the secret.
    fn take_secret(doc: &mut Self::Doc, version: i64, secret: &Secret) {
        _ = (doc, version, secret);
    }

    /// Refuses a removal that others would notice.
    fn release(writing: &mut Writing, object: &Object) -> impl Future<Output = Result<(), ApiError>> + Send {
        _ = (writing, object);
        async { Ok(()) }
    }
}

/// A field of requests that no answer has.
struct SecretField {
    name: &'static str,
    description: &'static str,
}

/// A new id of a type from `shared::ids`, as text.
macro_rules! id_text {
    ($id:ty, $now_ms:expr) => {
        <$id>::new($now_ms, runtime::random::bytes()).to_string()
    };
}
use id_text;
