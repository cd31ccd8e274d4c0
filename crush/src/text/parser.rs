//! Walking over the tokens; the sections themselves are in `sections`.

use super::ParseError;
use super::lexer::{Token, tokens};
use crate::map::{CrushMap, MapError};
use crate::tunables::Tunables;
use std::collections::BTreeSet;
use std::str::FromStr;

/// A position in the tokens, and the map read so far.
pub(super) struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    end: Token<'a>,
    at: usize,
    pub(super) map: CrushMap,
    /// Ids written anywhere in the text; a bucket without an id must not take one of them.
    pub(super) written_ids: BTreeSet<i32>,
    /// Where to look for the next free bucket id.
    pub(super) next_free_id: i32,
}

impl<'a> Parser<'a> {
    pub(super) fn new(text: &'a str) -> Parser<'a> {
        let (tokens, end) = tokens(text);
        let written_ids = tokens
            .windows(2)
            .filter(|pair| pair[0].text == "id")
            .filter_map(|pair| pair[1].text.parse().ok())
            .collect();
        let map = CrushMap::new(Tunables::ARGONAUT);
        Parser { tokens, end, at: 0, map, written_ids, next_free_id: -1 }
    }

    /// The whole text.
    pub(super) fn map(mut self) -> Result<CrushMap, ParseError> {
        while let Some(token) = self.peek() {
            match token.text {
                "tunable" => self.tunable()?,
                "device" => self.device()?,
                "type" => self.item_type()?,
                _ => break,
            }
        }
        while self.peek().is_some_and(|token| !matches!(token.text, "rule" | "choose_args")) {
            self.bucket()?;
        }
        while self.peek_is("rule") {
            self.rule()?;
        }
        while self.peek_is("choose_args") {
            self.choose_args()?;
        }
        match self.peek() {
            None => Ok(self.map),
            Some(token) => Err(fail(
                token,
                format!(
                    "`{}` cannot come here: devices and types come first, then buckets, then rules, then choose_args",
                    token.text
                ),
            )),
        }
    }

    pub(super) fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    pub(super) fn peek_is(&self, text: &str) -> bool {
        self.peek().is_some_and(|token| token.text == text)
    }

    /// Consumes the next token if it is `text`.
    pub(super) fn take_if(&mut self, text: &str) -> bool {
        let found = self.peek_is(text);
        self.at += usize::from(found);
        found
    }

    /// Consumes the next token, whatever it is; `wanted` describes what should be here.
    pub(super) fn next(&mut self, wanted: &str) -> Result<Token<'a>, ParseError> {
        let token =
            self.peek().ok_or_else(|| fail(self.end, format!("the text ends where {wanted} should be")))?;
        self.at += 1;
        Ok(token)
    }

    /// Consumes the next token, which must be `text`.
    pub(super) fn expect(&mut self, text: &str) -> Result<Token<'a>, ParseError> {
        let wanted = format!("`{text}`");
        let token = self.next(&wanted)?;
        if token.text == text { Ok(token) } else { Err(unexpected(token, &wanted)) }
    }

    /// Consumes a whole number.
    pub(super) fn number<N: FromStr>(&mut self, wanted: &str) -> Result<N, ParseError> {
        let token = self.next(wanted)?;
        token.text.parse().map_err(|_| unexpected(token, wanted))
    }

    /// Consumes the name of an existing item; gives its id.
    pub(super) fn item_name(&mut self) -> Result<(i32, Token<'a>), ParseError> {
        let token = self.next("the name of a device or bucket")?;
        match self.map.item_id(token.text) {
            Some(id) => Ok((id, token)),
            None => {
                Err(fail(token, format!("no device or bucket `{}` is defined before this line", token.text)))
            }
        }
    }

    /// Consumes the name of a declared type; gives its number.
    pub(super) fn type_name(&mut self) -> Result<u32, ParseError> {
        let token = self.next("the name of a type")?;
        self.map.type_id(token.text).ok_or_else(|| {
            fail(token, format!("no type `{}` is declared; declare it with a `type` line", token.text))
        })
    }
}

/// An error at a token.
pub(super) fn fail(token: Token<'_>, message: String) -> ParseError {
    ParseError { line: token.line, column: token.column, message }
}

/// An error at a token that should be something else.
pub(super) fn unexpected(token: Token<'_>, wanted: &str) -> ParseError {
    fail(token, format!("`{}` is where {wanted} should be", token.text))
}

/// A refusal of the map, attributed to a token.
pub(super) fn refused(token: Token<'_>) -> impl Fn(MapError) -> ParseError {
    move |error| fail(token, error.to_string())
}
