//! How stored objects look to callers.

use serde_json::{Map, Value, json};

use super::Noun;
use super::standing;
use super::store::Object;
use crate::error::ApiError;

/// Fields that every object has beside its document.
pub(super) const BESIDE: [&str; 6] = ["id", "revision", "created_at", "updated_at", "change_id", "status"];

/// The stored document as a JSON object. One that was damaged by hand is shown as empty rather than
/// not at all: the object can then still be replaced or removed.
pub(super) fn fields(object: &Object) -> Map<String, Value> {
    serde_json::from_str(&object.doc).unwrap_or_default()
}

/// The object as callers see it.
pub(super) fn view<N: Noun>(object: &Object) -> Map<String, Value> {
    let mut all = fields(object);
    for hidden in N::HIDDEN {
        all.remove(*hidden);
    }
    beside(&mut all, object);
    all
}

/// Adds id, revision and times.
pub(super) fn beside(all: &mut Map<String, Value>, object: &Object) {
    all.insert("id".into(), json!(object.id));
    all.insert("revision".into(), json!(object.revision));
    all.insert("created_at".into(), json!(rfc3339(object.created_at_ms)));
    all.insert("updated_at".into(), json!(rfc3339(object.updated_at_ms)));
}

/// JSON schema of what [`beside`] adds.
pub(super) fn beside_schema() -> Value {
    json!({
        "type": "object",
        "required": ["id", "revision", "created_at", "updated_at"],
        "properties": {
            "id": { "type": "string", "description": "Opaque, never reused", "readOnly": true },
            "revision": { "type": "integer", "description": "Also the `ETag`", "readOnly": true },
            "created_at": { "type": "string", "format": "date-time", "readOnly": true },
            "updated_at": { "type": "string", "format": "date-time", "readOnly": true },
            "change_id": {
                "type": "string", "readOnly": true,
                "description": "In answers to writes: `GET /api/v1/changes/{id}` says when it serves everywhere",
            },
            "status": standing::schema(),
        },
    })
}

/// A document's fields as a JSON object.
pub(super) fn to_map(value: Value) -> Result<Map<String, Value>, ApiError> {
    match value {
        Value::Object(map) => Ok(map),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Err(ApiError::new(
            crate::error::Code::InvalidDocument,
            "the body must be a JSON object",
        )
        .at("", "invalid_value", "must be a JSON object")),
    }
}

/// Milliseconds since 1970 as `2026-11-21T15:04:05.678Z` (RFC 3339). Years 0 to 9999; others are
/// clamped.
pub fn rfc3339(ms: i64) -> String {
    const YEAR_0: i64 = -62_167_219_200_000;
    const YEAR_9999: i64 = 253_402_300_799_999;
    let ms = ms.clamp(YEAR_0, YEAR_9999);
    let (days, rest) = (ms.div_euclid(86_400_000), ms.rem_euclid(86_400_000));
    // Days to a date of the Gregorian calendar, by 400-year eras from 1 March of year 0 (H. Hinnant,
    // "chrono-compatible low-level date algorithms").
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (h, m, s, milli) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60, rest % 1000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants() {
        let cases = [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_123, "2024-02-29T23:59:59.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
            (i64::MIN, "0000-01-01T00:00:00.000Z"),
        ];
        for (ms, text) in cases {
            assert_eq!(rfc3339(ms), text);
        }
    }
}
