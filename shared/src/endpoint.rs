//! What a caller can ask of a model. The names are those of vendor rows, usage records and metrics.

/// One operation of the data port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Endpoint {
    /// A conversation: `POST /v1/chat/completions`.
    ChatCompletions,
    /// Vectors of texts: `POST /v1/embeddings`.
    Embeddings,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::ChatCompletions, Self::Embeddings];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat_completions",
            Self::Embeddings => "embeddings",
        }
    }

    /// `ModelFacts.type` of the models that serve it.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat",
            Self::Embeddings => "embedding",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct() {
        let [chat, embeddings] = Endpoint::ALL;
        assert_ne!(chat.name(), embeddings.name());
        assert_ne!(chat.model_type(), embeddings.model_type());
    }
}
