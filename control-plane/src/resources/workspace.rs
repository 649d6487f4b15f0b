//! Workspaces. Each is a scope of its own, which holds its document beside everything else of it.

use axum::extract::State;
use compiler::input::Workspace;
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use shared::ids::WorkspaceId;
use utoipa::ToSchema;

use super::crud::{self, changed_reply, changed_schema, make, page_schema, reply_of};
use super::known::Known;
use super::project::{DEFAULT, Projects};
use super::standing::Standing;
use super::store::{Actor, Changed, Naming, Object, Scope, Writing};
use super::view::{BESIDE, beside_schema, to_map, view};
use super::{ListFilter, Noun, id_text};
use crate::app::App;
use crate::auth::permit::Action;
use crate::auth::{Principal, Reach, Tenant};
use crate::error::{ApiError, Code};
use crate::rest::{Access, Body, Claim, Params, Reply, Route, check_if_match, from_value};

use compiler::check::Check as _;

const COLLECTION: &str = "/api/v1/workspaces";
const ITEM: &str = "/api/v1/workspaces/{workspace}";
const PUBLISH: &str = "/api/v1/workspaces/{workspace}/publish";

pub(super) struct Workspaces;

/// An operator's word that a workspace may be published as it stands.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Confirmation {
    /// Must be true: publish although the workspace shrinks or grows past the guard.
    force: bool,
}

impl Noun for Workspaces {
    type Doc = Workspace;
    const KIND: &'static str = "workspace";
    const PATHS: [&'static str; 2] = [COLLECTION, ITEM];
    const TAG: &'static str = "workspaces";
    const NAME_FIELD: &'static str = "key";
    const FILTERS: &'static [ListFilter] = &[];

    fn new_id(now_ms: u64) -> String {
        id_text!(WorkspaceId, now_ms)
    }

    fn parent(_: &Workspace) -> String {
        String::new()
    }

    fn name<'a>(doc: &'a Workspace, _: &'a str) -> &'a str {
        &doc.key
    }

    async fn load(_: &mut Known, _: &mut Writing, _: &Workspace) -> Result<(), ApiError> {
        Ok(())
    }
}

/// Reading and changing one is as for every noun; making, listing and removing concern whole scopes.
pub(super) fn routes() -> Vec<Route> {
    let one = |route: &mut Route| json!({ "allOf": [beside_schema(), route.reference::<Workspace>()] });
    let mut list = Route::get(COLLECTION, Access::Fleet(Action::ReadWorkspace), list)
        .tag(Workspaces::TAG)
        .summary("Lists those within the token's reach, in order of id")
        .paged()
        .query("key", "The one with this key");
    let page = page_schema(one(&mut list));
    let mut create = Route::post(COLLECTION, Access::Fleet(Action::ManageWorkspaces), create)
        .tag(Workspaces::TAG)
        .summary("Creates one, with its project `default`")
        .body::<Workspace>()
        .refuses(&[Code::AlreadyExists]);
    let created = one(&mut create);
    let mut all = crud::item_routes::<Workspaces>(ITEM);
    // Its own removal instead of the usual one.
    all.retain(|route| route.method != http::Method::DELETE);
    all.push(list.answers_schema(200, "A page", page));
    all.push(create.answers_schema(201, "Created; `Location` says where", created));
    all.push(
        Route::delete(ITEM, Access::Workspace(Action::ManageWorkspaces), remove)
            .tag(Workspaces::TAG)
            .summary("Removes one with everything in it")
            .header("If-Match", "Refuses unless the object is still at this `ETag`")
            .refuses(&[Code::RevisionMismatch])
            .answers_schema(200, "Removed", json!({ "type": "object" })),
    );
    all.push(
        Route::post(PUBLISH, Access::Workspace(Action::ManageFleet), publish)
            .tag(Workspaces::TAG)
            .summary("Confirms a revision that is held back")
            .describe(
                "A revision that removes more than half of a workspace, or more than doubles it, is held back until \
                 an operator confirms it; `held_back` in `status` says so. This gives the workspace, as it stands \
                 now, a new revision that is published in spite of that guard. Limits of nodes still hold.",
            )
            .body::<Confirmation>()
            .answers_schema(200, "Confirmed", changed_schema()),
    );
    all
}

async fn list(State(app): State<App>, principal: Principal, params: Params) -> Result<Reply, ApiError> {
    let limit = params.limit()?;
    let context = format!("workspaces/{:?}/{}", principal.reach, params.filters());
    let after = match params.get("after") {
        None => String::new(),
        Some(cursor) => app
            .vault
            .verify(&context, cursor)
            .ok_or_else(|| ApiError::new(Code::InvalidCursor, "send next of the page before, with the same filters"))?,
    };
    let only = match principal.reach {
        Reach::All => String::new(),
        Reach::One(id) => id.to_string(),
    };
    let mut rows: Vec<Object> = sqlx::query_as(
        "SELECT kind, id, parent, name, doc, revision, created_at_ms, updated_at_ms FROM objects
         WHERE kind = 'workspace' AND scope = id AND id > $1 AND deleted = 0 AND ($2 = '' OR id = $2)
             AND ($3 = '' OR name = $3)
         ORDER BY id LIMIT $4",
    )
    .bind(&*after)
    .bind(only)
    .bind(params.get("key").unwrap_or_default())
    .bind(limit + 1)
    .fetch_all(app.db.pool())
    .await?;
    let more = rows.len() as i64 > limit;
    rows.truncate(usize::try_from(limit).unwrap_or_default());
    let next = rows.last().filter(|_| more).map(|last| app.vault.sign(&context, &last.id));
    let shown = |object: &Object| {
        let mut all = view::<Workspaces>(object);
        Standing::of(&app, &object.id).tell(&mut all, object);
        all
    };
    let data: Vec<_> = rows.iter().map(shown).collect();
    Reply::json(StatusCode::OK, &json!({ "data": data, "next": next }))
}

async fn create(
    State(app): State<App>,
    principal: Principal,
    claim: Claim,
    Body(body): Body,
) -> Result<Reply, ApiError> {
    let (writing, made) = begin(&app, Actor::token(principal.id), to_map(body)?).await?;
    let object = &made.workspace.object;
    let last = Changed { object: object.clone(), change_id: made.project.change_id };
    let reply = reply_of(&last, view::<Workspaces>(object), StatusCode::CREATED)?
        .location(format!("{COLLECTION}/{}", object.id));
    writing.commit(&claim, &reply).await?;
    Ok(reply)
}

/// A workspace that is being made. Its project came last, so its change covers both.
pub(super) struct MadeWorkspace {
    pub workspace: Changed,
    pub project: Changed,
}

/// Makes a workspace and its default project; the caller may add more before committing.
pub(super) async fn begin(
    app: &App,
    actor: Actor,
    sent: Map<String, Value>,
) -> Result<(Writing, MadeWorkspace), ApiError> {
    if let Some(name) = BESIDE.iter().find(|name| sent.contains_key(**name)) {
        let refused = ApiError::new(Code::InvalidDocument, "read-only fields were sent");
        return Err(refused.at(*name, "read_only", "is set by the control plane"));
    }
    let doc: Workspace = from_value(Value::Object(sent))?;
    let faults = doc.check(&Known::default());
    if !faults.is_empty() {
        return Err(ApiError::invalid(faults));
    }
    let id = WorkspaceId::new(u64::try_from(app.now_ms()).unwrap_or_default(), runtime::random::bytes());
    let tenant = Tenant::of_system(id);
    let mut writing = Writing::begin_new(app, Scope::of(&tenant), &doc.key, actor).await?;
    let naming = Naming { parent: "", name: &doc.key, field: "key" };
    let workspace = writing.create(Workspaces::KIND, tenant.scope(), naming, &doc).await?;
    let default = Map::from_iter([("key".to_owned(), json!(DEFAULT)), ("display_name".to_owned(), json!("Default"))]);
    let project = make::<Projects>(&mut writing, default).await?.changed;
    Ok((writing, MadeWorkspace { workspace, project }))
}

async fn publish(
    State(app): State<App>,
    principal: Principal,
    tenant: Tenant,
    claim: Claim,
    body: Body,
) -> Result<Reply, ApiError> {
    let confirmation: Confirmation = body.parse()?;
    if !confirmation.force {
        let refused = ApiError::new(Code::InvalidDocument, "the fields in errors must be corrected");
        return Err(refused.at("force", "invalid_value", "must be true; without a confirmation nothing is to be done"));
    }
    let mut writing = Writing::begin(&app, Scope::of(&tenant), Actor::token(principal.id)).await?;
    let workspace = writing.find(Workspaces::KIND, tenant.scope()).await?.ok_or_else(ApiError::not_found)?;
    let confirmed = writing.confirm(&workspace).await?;
    let reply = changed_reply(&confirmed)?;
    writing.commit(&claim, &reply).await?;
    Ok(reply)
}

async fn remove(
    State(app): State<App>,
    principal: Principal,
    tenant: Tenant,
    headers: HeaderMap,
    claim: Claim,
) -> Result<Reply, ApiError> {
    let mut writing = Writing::begin(&app, Scope::of(&tenant), Actor::token(principal.id)).await?;
    let old = writing.find(Workspaces::KIND, tenant.scope()).await?.ok_or_else(ApiError::not_found)?;
    check_if_match(&headers, old.revision)?;
    let changed = writing.delete(&old).await?;
    writing.delete_scope().await?;
    let reply = changed_reply(&changed)?;
    writing.commit(&claim, &reply).await?;
    Ok(reply)
}
