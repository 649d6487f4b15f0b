//! Create, list, read, replace, change, remove: the handlers of every noun.
//!
//! A document passes four steps, in this order: its form (types, unknown and read-only fields), its
//! completion (defaults that depend on others), its rules (`compiler::check`, against what exists in
//! the same transaction), its storage.

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};

use super::known::Known;
use super::standing::Standing;
use super::store::{self, Actor, Changed, Filter, Naming, Object, Scope, Writing};
use super::view::{BESIDE, beside_schema, fields, to_map, view};
use super::{FilterOn, Noun};
use crate::app::App;
use crate::auth::permit::Action;
use crate::auth::{Principal, Tenant};
use crate::error::{ApiError, Code};
use crate::rest::{Access, Body, Claim, Params, Reply, Route, check_if_match, from_value, is_not_modified};
use crate::vault::Secret;

use compiler::check::Check as _;

const IF_MATCH: (&str, &str) = ("If-Match", "Refuses unless the object is still at this `ETag`");
const IF_NONE_MATCH: (&str, &str) = ("If-None-Match", "Answers 304 when the object is still at this `ETag`");

/// The six routes of a noun.
pub(super) fn routes<N: Noun>() -> Vec<Route> {
    let [collection, item] = N::PATHS;
    let read = Access::Workspace(Action::ReadWorkspace);
    let write = Access::Workspace(Action::ChangeWorkspace);
    let tag = N::TAG;
    let list = N::FILTERS.iter().fold(Route::get(collection, read, list::<N>).paged(), |route, filter| {
        route.query(filter.query, filter.description)
    });
    let mut all = vec![
        list.tag(tag).summary("Lists, in order of id"),
        with_body::<N>(Route::post(collection, write, create::<N>))
            .tag(tag)
            .summary("Creates one")
            .refuses(&[Code::AlreadyExists, Code::NotFound]),
    ];
    all.extend(item_routes::<N>(item));
    let [list, create, ..] = all.as_mut_slice() else { return all };
    document_answer::<N>(list, 200, "A page", true);
    document_answer::<N>(create, 201, "Created; `Location` says where", false);
    all
}

/// Read, replace, change, remove.
pub(super) fn item_routes<N: Noun>(item: &'static str) -> Vec<Route> {
    let read = Access::Workspace(Action::ReadWorkspace);
    let write = Access::Workspace(Action::ChangeWorkspace);
    let tag = N::TAG;
    let mut get = Route::get(item, read, get::<N>)
        .tag(tag)
        .summary("Reads one")
        .header(IF_NONE_MATCH.0, IF_NONE_MATCH.1)
        .answers_plain(304, "Not modified");
    let mut put = with_body::<N>(Route::put(item, write, replace::<N>)).tag(tag).summary("Replaces the whole document");
    let mut patch = with_body::<N>(Route::patch(item, write, change::<N>))
        .tag(tag)
        .summary("Changes some fields")
        .describe("The body is a JSON merge patch (RFC 7396): only the given fields change, `null` resets one.");
    let mut delete = Route::delete(item, write, remove::<N>)
        .tag(tag)
        .summary("Removes one")
        .header(IF_MATCH.0, IF_MATCH.1)
        .refuses(&[Code::RevisionMismatch, Code::InUse, Code::Protected])
        .answers_schema(200, "Removed", changed_schema());
    for route in [&mut put, &mut patch] {
        *route = route.clone().header(IF_MATCH.0, IF_MATCH.1).refuses(&[Code::RevisionMismatch]);
    }
    for route in [&mut get, &mut put, &mut patch] {
        document_answer::<N>(route, 200, "The object", false);
    }
    if N::BY_NAME {
        let text = format!("`id` may also be the {}.", N::NAME_FIELD);
        get = get.describe(text.clone());
        put = put.describe(text.clone());
        delete = delete.describe(text);
    }
    vec![get, put, patch, delete]
}

fn with_body<N: Noun>(mut route: Route) -> Route {
    let document = route.reference::<N::Doc>();
    let schema = match N::SECRET {
        None => document,
        Some(secret) => json!({ "allOf": [document, {
            "type": "object",
            "properties": { secret.name: { "type": "string", "writeOnly": true, "description": secret.description } },
        }] }),
    };
    route.body_schema(schema)
}

fn document_answer<N: Noun>(route: &mut Route, status: u16, text: &'static str, page: bool) {
    let document = route.reference::<N::Doc>();
    let mut one = json!({ "allOf": [beside_schema(), document] });
    if status == 201 && N::KIND == "api_key" {
        let key = json!({ "type": "string", "description": "The key itself. Shown this once." });
        one["allOf"][0]["properties"]["key"] = key;
    }
    let schema = if page { page_schema(one) } else { one };
    *route = route.clone().answers_schema(status, text, schema);
}

/// JSON schema of a page of these.
pub(super) fn page_schema(of: Value) -> Value {
    json!({
        "type": "object",
        "required": ["data", "next"],
        "properties": {
            "data": { "type": "array", "items": of },
            "next": { "type": ["string", "null"], "description": "`after` of the next page; null on the last" },
        },
    })
}

/// JSON schema of [`changed_reply`].
pub(super) fn changed_schema() -> Value {
    json!({
        "type": "object",
        "properties": { "id": { "type": "string" }, "revision": { "type": "integer" }, "change_id": { "type": "string" } },
    })
}

async fn list<N: Noun>(State(app): State<App>, tenant: Tenant, params: Params) -> Result<Reply, ApiError> {
    list_in(&app, &Scope::of(&tenant), N::KIND, N::FILTERS, &params, view::<N>).await
}

/// A page of a kind in a scope.
pub(super) async fn list_in(
    app: &App,
    scope: &Scope,
    kind: &str,
    filters: &[super::ListFilter],
    params: &Params,
    view: impl Fn(&Object) -> Map<String, Value>,
) -> Result<Reply, ApiError> {
    let limit = params.limit()?;
    let context = format!("{}/{kind}/{}", scope.as_str(), params.filters());
    let after = match params.get("after") {
        None => String::new(),
        Some(cursor) => app.vault.verify(&context, cursor).ok_or_else(bad_cursor)?,
    };
    let mut filter = Filter { after: &after, limit: limit + 1, ..Filter::default() };
    for known in filters {
        let value = params.get(known.query);
        match known.on {
            FilterOn::Parent => filter.parent = filter.parent.or(value),
            FilterOn::Name => filter.name = filter.name.or(value),
            FilterOn::Disabled => filter.disabled = params.parsed(known.query, "true or false")?,
        }
    }
    let mut rows = store::list(app, scope, kind, &filter).await?;
    let more = rows.len() as i64 > limit;
    rows.truncate(usize::try_from(limit).unwrap_or_default());
    let next = rows.last().filter(|_| more).map(|last| app.vault.sign(&context, &last.id));
    let standing = Standing::of(app, scope.as_str());
    let shown = |object: &Object| {
        let mut all = view(object);
        standing.tell(&mut all, object);
        all
    };
    let data: Vec<_> = rows.iter().map(shown).collect();
    Reply::json(StatusCode::OK, &json!({ "data": data, "next": next }))
}

fn bad_cursor() -> ApiError {
    ApiError::new(Code::InvalidCursor, "send next of the page before, with the same filters")
}

async fn get<N: Noun>(
    State(app): State<App>,
    tenant: Tenant,
    path: Path<ItemPath>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let mut connection = app.db.pool().acquire().await?;
    let scope = Scope::of(&tenant);
    let id = path.id(&tenant);
    let mut found = store::find(&mut connection, &scope, N::KIND, id).await?;
    if found.is_none() && N::BY_NAME {
        found = store::find_named(&mut connection, &scope, N::KIND, "", id).await?;
    }
    let object = found.ok_or_else(ApiError::not_found)?;
    if is_not_modified(&headers, object.revision)? {
        return Ok(Reply::empty(StatusCode::NOT_MODIFIED).etag(object.revision).into_response());
    }
    let mut all = view::<N>(&object);
    Standing::of(&app, scope.as_str()).tell(&mut all, &object);
    Ok(Reply::json(StatusCode::OK, &all)?.etag(object.revision).into_response())
}

/// `{id}`; a path that ends with `{workspace}` has none and means the workspace itself.
#[derive(serde::Deserialize)]
pub(super) struct ItemPath {
    id: Option<String>,
}

impl ItemPath {
    fn id<'a>(&'a self, tenant: &'a Tenant) -> &'a str {
        self.id.as_deref().unwrap_or(tenant.scope())
    }
}

async fn create<N: Noun>(
    State(app): State<App>,
    principal: Principal,
    tenant: Tenant,
    claim: Claim,
    Body(body): Body,
) -> Result<Reply, ApiError> {
    let mut writing = Writing::begin(&app, Scope::of(&tenant), Actor::token(principal.id)).await?;
    let made = make::<N>(&mut writing, to_map(body)?).await?;
    let place = N::PATHS[0].replace("{workspace}", tenant.scope());
    let reply = made.reply::<N>(StatusCode::CREATED)?.location(format!("{place}/{}", made.changed.object.id));
    writing.commit(&claim, &reply).await?;
    Ok(reply)
}

/// An object that was just made, and what is shown of it once.
pub(super) struct Made {
    pub changed: Changed,
    pub shown_once: Option<(&'static str, Secret)>,
}

impl Made {
    fn reply<N: Noun>(&self, status: StatusCode) -> Result<Reply, ApiError> {
        let mut all = view::<N>(&self.changed.object);
        if let Some((name, secret)) = &self.shown_once {
            all.insert((*name).into(), json!(secret.expose_str()));
        }
        reply_of(&self.changed, all, status)
    }
}

/// Makes an object from what a caller sent.
pub(super) async fn make<N: Noun>(writing: &mut Writing, mut fields: Map<String, Value>) -> Result<Made, ApiError> {
    let secret = take_secret::<N>(&mut fields)?;
    let read_only = BESIDE.iter().chain(N::SET_BY_US).filter(|name| fields.contains_key(**name));
    let refused = read_only.fold(None, |refused: Option<ApiError>, name| {
        let refused = refused.unwrap_or_else(|| ApiError::new(Code::InvalidDocument, "read-only fields were sent"));
        Some(refused.at(*name, "read_only", "is set by the control plane"))
    });
    if let Some(refused) = refused {
        return Err(refused);
    }
    let mut doc: N::Doc = from_value(Value::Object(fields))?;
    let id = N::new_id(u64::try_from(writing.now_ms()).unwrap_or_default());
    keep_secret::<N>(writing, &id, &mut doc, secret).await?;
    settle::<N>(writing, &mut doc, None).await?;
    let shown_once = N::issue(&mut doc);
    let parent = N::parent(&doc);
    let naming = Naming { parent: &parent, name: N::name(&doc, &id), field: N::NAME_FIELD };
    let changed = writing.create(N::KIND, &id, naming, &doc).await?;
    Ok(Made { changed, shown_once })
}

/// Completes and checks.
async fn settle<N: Noun>(writing: &mut Writing, doc: &mut N::Doc, old: Option<&N::Doc>) -> Result<(), ApiError> {
    let mut known = Known::default();
    N::load(&mut known, writing, doc).await?;
    N::complete(doc, old, &known);
    if old.is_some() {
        // Completing may have taken over references from the old document.
        N::load(&mut known, writing, doc).await?;
    }
    let mut faults = doc.check(&known);
    faults.extend(old.map(|old| doc.check_change(old)).unwrap_or_default());
    if faults.is_empty() { Ok(()) } else { Err(ApiError::invalid(faults)) }
}

async fn replace<N: Noun>(
    State(app): State<App>,
    principal: Principal,
    tenant: Tenant,
    path: Path<ItemPath>,
    headers: HeaderMap,
    claim: Claim,
    Body(body): Body,
) -> Result<Reply, ApiError> {
    let update = Update { app, actor: Actor::token(principal.id), tenant, headers, claim };
    update.run::<N>(&path, to_map(body)?, |_, sent| sent).await
}

async fn change<N: Noun>(
    State(app): State<App>,
    principal: Principal,
    tenant: Tenant,
    path: Path<ItemPath>,
    headers: HeaderMap,
    claim: Claim,
    Body(body): Body,
) -> Result<Reply, ApiError> {
    let update = Update { app, actor: Actor::token(principal.id), tenant, headers, claim };
    update.run::<N>(&path, to_map(body)?, merge_patch).await
}

/// What replacing and changing have in common.
struct Update {
    app: App,
    actor: Actor,
    tenant: Tenant,
    headers: HeaderMap,
    claim: Claim,
}

impl Update {
    async fn run<N: Noun>(
        self,
        path: &ItemPath,
        mut sent: Map<String, Value>,
        combine: impl Fn(Map<String, Value>, Map<String, Value>) -> Map<String, Value> + Send,
    ) -> Result<Reply, ApiError> {
        let mut writing = Writing::begin(&self.app, Scope::of(&self.tenant), self.actor).await?;
        let old = item::<N>(&mut writing, path.id(&self.tenant)).await?;
        check_if_match(&self.headers, old.revision)?;
        let secret = take_secret::<N>(&mut sent)?;
        take_read_only::<N>(&mut sent, &old)?;
        let stored = fields(&old);
        let mut wanted = combine(stored.clone(), sent);
        for name in N::SET_BY_US {
            if let Some(value) = stored.get(*name) {
                wanted.insert((*name).into(), value.clone());
            }
        }
        let mut doc: N::Doc = from_value(Value::Object(wanted))?;
        // A document that was damaged by hand cannot be compared with; it can be replaced.
        let before: Option<N::Doc> = serde_json::from_str(&old.doc).ok();
        keep_secret::<N>(&mut writing, &old.id, &mut doc, secret).await?;
        settle::<N>(&mut writing, &mut doc, before.as_ref()).await?;
        if N::name(&doc, &old.id) != old.name || N::parent(&doc) != old.parent {
            rename::<N>(&mut writing, &old, &doc).await?;
        }
        let renamed = Object { name: N::name(&doc, &old.id).to_owned(), ..old };
        let changed = writing.update(&renamed, &doc).await?;
        let reply = reply_of(&changed, view::<N>(&changed.object), StatusCode::OK)?;
        writing.commit(&self.claim, &reply).await?;
        Ok(reply)
    }
}

/// Names of credentials may change; parents never do.
async fn rename<N: Noun>(writing: &mut Writing, old: &Object, doc: &N::Doc) -> Result<(), ApiError> {
    if N::parent(doc) != old.parent {
        return Err(ApiError::new(Code::InvalidDocument, "the object cannot move").at("", "immutable", "cannot move"));
    }
    let naming = Naming { parent: &old.parent, name: N::name(doc, &old.id), field: N::NAME_FIELD };
    writing.rename(old, naming).await
}

async fn remove<N: Noun>(
    State(app): State<App>,
    principal: Principal,
    tenant: Tenant,
    path: Path<ItemPath>,
    headers: HeaderMap,
    claim: Claim,
) -> Result<Reply, ApiError> {
    let mut writing = Writing::begin(&app, Scope::of(&tenant), Actor::token(principal.id)).await?;
    let old = item::<N>(&mut writing, path.id(&tenant)).await?;
    check_if_match(&headers, old.revision)?;
    N::release(&mut writing, &old).await?;
    let changed = writing.delete(&old).await?;
    let reply = changed_reply(&changed)?;
    writing.commit(&claim, &reply).await?;
    Ok(reply)
}

/// The answer to a change that leaves nothing to show.
pub(super) fn changed_reply(changed: &Changed) -> Result<Reply, ApiError> {
    let all = Map::from_iter([
        ("id".to_owned(), json!(changed.object.id)),
        ("revision".to_owned(), json!(changed.object.revision)),
    ]);
    reply_of(changed, all, StatusCode::OK)
}

/// The answer to a write: the fields, the change's id in body and header, the new ETag.
pub(super) fn reply_of(changed: &Changed, mut all: Map<String, Value>, status: StatusCode) -> Result<Reply, ApiError> {
    let change = changed.change_id.to_string();
    all.insert("change_id".into(), json!(change));
    Ok(Reply::json(status, &all)?.etag(changed.object.revision).header("x-pointsman-change", change))
}

async fn item<N: Noun>(writing: &mut Writing, id: &str) -> Result<Object, ApiError> {
    let mut found = writing.find(N::KIND, id).await?;
    if found.is_none() && N::BY_NAME {
        found = writing.find_named(N::KIND, "", id).await?;
    }
    found.ok_or_else(ApiError::not_found)
}

/// Takes the write-only field out of what was sent.
fn take_secret<N: Noun>(fields: &mut Map<String, Value>) -> Result<Option<Secret>, ApiError> {
    const LONGEST: usize = 8192;
    let Some(field) = N::SECRET else { return Ok(None) };
    let value = match fields.remove(field.name) {
        None => return Ok(None),
        Some(Value::String(text)) => Secret::new(text),
        Some(_) => Secret::new(""),
    };
    // What an HTTP header can carry; the text itself must not appear in the refusal.
    let visible = |bytes: &[u8]| bytes.iter().all(|b| (0x21..=0x7e).contains(b));
    let bytes = value.expose();
    if bytes.is_empty() || bytes.len() > LONGEST || !visible(bytes) {
        let message = format!("must be a text of 1 to {LONGEST} visible ASCII characters without spaces");
        let refused = ApiError::new(Code::InvalidDocument, "the fields in errors must be corrected");
        return Err(refused.at(field.name, "invalid_value", message));
    }
    Ok(Some(value))
}

async fn keep_secret<N: Noun>(
    writing: &mut Writing,
    id: &str,
    doc: &mut N::Doc,
    secret: Option<Secret>,
) -> Result<(), ApiError> {
    let Some(secret) = secret else { return Ok(()) };
    let version = writing.next_secret_version(id).await?;
    N::take_secret(doc, version, &secret);
    writing.keep_secret(id, version, &secret).await
}

/// Read-only fields may come back as they were read, so that a read object can be sent again.
fn take_read_only<N: Noun>(sent: &mut Map<String, Value>, old: &Object) -> Result<(), ApiError> {
    let shown = view::<N>(old);
    let stored = fields(old);
    let mut refused = ApiError::new(Code::InvalidDocument, "read-only fields were changed");
    for name in BESIDE.iter().chain(N::SET_BY_US) {
        let Some(value) = sent.remove(*name) else { continue };
        // Made anew at every reading.
        let follows = matches!(*name, "status" | "change_id");
        if !follows && shown.get(*name).or(stored.get(*name)) != Some(&value) {
            refused = refused.at(*name, "read_only", "is set by the control plane; leave it out or as it was read");
        }
    }
    if refused.faults.is_empty() { Ok(()) } else { Err(refused) }
}

/// RFC 7396.
fn merge_patch(mut target: Map<String, Value>, patch: Map<String, Value>) -> Map<String, Value> {
    for (name, value) in patch {
        match value {
            Value::Null => _ = target.remove(&name),
            Value::Object(inner) => {
                let old = match target.remove(&name) {
                    Some(Value::Object(old)) => old,
                    Some(_) | None => Map::new(),
                };
                target.insert(name, Value::Object(merge_patch(old, inner)));
            }
            value @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                target.insert(name, value);
            }
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 7396, appendix A, whose target and patch are objects.
    #[test]
    fn merge_patches() {
        let cases = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (json!({"a":"b","b":"c"}), json!({"a":null}), json!({"b":"c"})),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (json!({"a":{"b":"c"}}), json!({"a":{"b":"d","c":null}}), json!({"a":{"b":"d"}})),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (json!({}), json!({"a":{"bb":{"ccc":null}}}), json!({"a":{"bb":{}}})),
        ];
        for (target, patch, expected) in cases {
            let merged = merge_patch(to_map(target).expect("object"), to_map(patch).expect("object"));
            assert_eq!(Value::Object(merged), expected);
        }
    }
}
