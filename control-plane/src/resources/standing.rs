//! What became of an object after it was stored: the `status` of answers to reads. It asks the compile
//! task's memory only, never the database.

use serde_json::{Map, Value, json};

use super::store::Object;
use crate::app::App;
use crate::publish::compile_task::ScopeStatus;

/// How one scope stands: asked for once, told for many of its objects.
pub(super) struct Standing {
    compiled: ScopeStatus,
    published_revision: u64,
}

impl Standing {
    /// Of a scope, by its name.
    pub(super) fn of(app: &App, scope: &str) -> Self {
        Self {
            compiled: app.publish.status(scope).unwrap_or_default(),
            published_revision: app.publish.board.get(scope).map(|p| p.revision()).unwrap_or_default(),
        }
    }

    /// Adds an object's `status` to its fields.
    pub(super) fn tell(&self, all: &mut Map<String, Value>, object: &Object) {
        all.insert("status".into(), self.status(object));
    }

    fn status(&self, object: &Object) -> Value {
        let revision = u64::try_from(object.revision).unwrap_or_default();
        let is_compiled = self.compiled.revision >= revision;
        let mut found = self.compiled.quarantined.iter().filter(|q| q.kind == object.kind && q.id == object.id);
        if let Some(bad) = found.next().filter(|_| is_compiled) {
            return json!({ "state": "quarantined", "code": bad.code, "path": bad.path, "message": bad.message });
        }
        if self.published_revision >= revision {
            return json!({ "state": "serving" });
        }
        match &self.compiled.held_back {
            Some(why) if is_compiled => json!({ "state": "pending", "code": "held_back", "message": why }),
            Some(_) | None => json!({ "state": "pending" }),
        }
    }
}

/// JSON schema of a `status`.
pub(super) fn schema() -> Value {
    json!({
        "type": "object", "readOnly": true, "required": ["state"],
        "description": "In answers to reads; not part of what the `ETag` stands for",
        "properties": {
            "state": {
                "enum": ["serving", "pending", "quarantined"],
                "description": "`serving`: nodes are given it; `pending`: not yet compiled, or held back; \
                    `quarantined`: it does not compile, and the version before it stays in force",
            },
            "code": { "type": "string", "description": "Why, unless it serves" },
            "path": { "type": "string", "description": "Field that does not compile; empty = the whole document" },
            "message": { "type": "string", "description": "For a person" },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use compiler::lower::Quarantined;

    #[test]
    fn an_objects_status_follows_its_scope() {
        let bad = Quarantined {
            kind: "alias".into(),
            id: "bad".into(),
            revision: 5,
            code: "unknown_reference",
            path: "targets[0]".into(),
            message: "no such provider".into(),
            serving_revision: Some(2),
        };
        let standing = |compiled, published_revision, held_back: Option<&str>| Standing {
            compiled: ScopeStatus {
                revision: compiled,
                quarantined: vec![bad.clone()],
                held_back: held_back.map(str::to_owned),
                ..ScopeStatus::default()
            },
            published_revision,
        };
        let cases = [
            ("good", 5, standing(5, 5, None), json!({ "state": "serving" })),
            ("good", 6, standing(5, 5, None), json!({ "state": "pending" })),
            ("good", 6, standing(5, 4, Some("why")), json!({ "state": "pending" })),
            (
                "good",
                5,
                standing(5, 4, Some("why")),
                json!({ "state": "pending", "code": "held_back", "message": "why" }),
            ),
            ("good", 4, standing(5, 4, Some("why")), json!({ "state": "serving" })),
            (
                "bad",
                5,
                standing(5, 5, None),
                json!({
                    "state": "quarantined", "code": "unknown_reference", "path": "targets[0]",
                    "message": "no such provider",
                }),
            ),
            ("bad", 6, standing(5, 5, None), json!({ "state": "pending" })),
        ];
        for (id, revision, standing, expected) in cases {
            let object = Object {
                kind: "alias".into(),
                id: id.into(),
                parent: String::new(),
                name: id.into(),
                doc: "{}".into(),
                revision,
                created_at_ms: 0,
                updated_at_ms: 0,
            };
            assert_eq!(standing.status(&object), expected, "{id} at {revision}");
        }
    }
}
