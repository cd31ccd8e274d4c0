//! Words and brackets, with their positions.

/// A word, or one of `{`, `}`, `[` and `]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) text: &'a str,
    pub(super) line: u32,
    pub(super) column: u32,
}

/// All tokens of a text, without comments, and the position of its end as an empty token.
pub(super) fn tokens(text: &str) -> (Vec<Token<'_>>, Token<'_>) {
    let mut tokens = Vec::new();
    let mut line = 0;
    let mut end = 1;
    for content in text.split('\n') {
        line += 1;
        end = content.chars().count() as u32 + 1;
        let content = content.split('#').next().unwrap_or_default();
        tokens_of_line(content, line, &mut tokens);
    }
    (tokens, Token { text: "", line, column: end })
}

fn tokens_of_line<'a>(content: &'a str, line: u32, tokens: &mut Vec<Token<'a>>) {
    let mut word: Option<(usize, u32)> = None;
    let mut column = 0;
    for (at, c) in content.char_indices() {
        column += 1;
        let bracket = matches!(c, '{' | '}' | '[' | ']');
        if bracket || c.is_whitespace() {
            if let Some((start, column)) = word.take() {
                tokens.push(Token { text: &content[start..at], line, column });
            }
            if bracket {
                tokens.push(Token { text: &content[at..at + 1], line, column });
            }
        } else if word.is_none() {
            word = Some((at, column));
        }
    }
    if let Some((start, column)) = word {
        tokens.push(Token { text: &content[start..], line, column });
    }
}
