//! Statements whose length depends on the values. Text comes from literals of this crate only, values
//! are bound: `QueryBuilder` would write `?` for the pool over both engines, which PostgreSQL does not
//! know.

use std::fmt::Write;

use sqlx::any::AnyArguments;
use sqlx::query::{Query, QueryAs};
use sqlx::{Any, Arguments, AssertSqlSafe, Encode, FromRow, Type};

/// A statement in the making.
#[derive(Default)]
pub struct Sql {
    text: String,
    values: AnyArguments,
}

impl Sql {
    /// Begins with this text.
    pub fn new(text: &'static str) -> Self {
        Self { text: text.to_owned(), values: AnyArguments::default() }
    }

    /// Adds text.
    pub fn push(&mut self, text: &'static str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Adds a placeholder and its value.
    pub fn bind<'t, T: Encode<'t, Any> + Type<Any>>(&mut self, value: T) -> &mut Self {
        // Text and 64-bit numbers, the only types in use, always encode.
        _ = self.values.add(value);
        _ = write!(self.text, "${}", self.values.len());
        self
    }

    /// Adds `($1, $2, ...)` with these values.
    pub fn bind_list<'t, T: Encode<'t, Any> + Type<Any>>(&mut self, values: impl IntoIterator<Item = T>) -> &mut Self {
        self.push("(");
        for (place, value) in values.into_iter().enumerate() {
            self.push(if place == 0 { "" } else { ", " }).bind(value);
        }
        self.push(")")
    }

    /// To execute.
    pub fn query(self) -> Query<'static, Any, AnyArguments> {
        sqlx::query_with(AssertSqlSafe(self.text), self.values)
    }

    /// To fetch rows.
    pub fn query_as<T>(self) -> QueryAs<'static, Any, T, AnyArguments>
    where
        T: for<'r> FromRow<'r, sqlx::any::AnyRow>,
    {
        sqlx::query_as_with(AssertSqlSafe(self.text), self.values)
    }
}
