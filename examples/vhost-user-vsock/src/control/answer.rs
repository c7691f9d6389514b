//! What a client is answered.

use http_body_util::{Either, Full};
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::task::JoinError;
use tracing::error;

use super::stream::Stream;
use crate::manager::Failure;
use crate::mistake::{Kind, one_line};
use crate::view::ErrorView;

pub(super) type Body = Either<Full<Bytes>, Stream>;

/// An answer before it is HTTP.
pub(super) struct Answer {
    status: StatusCode,
    body: Body,
    content_type: &'static str,
    allowed: Option<&'static str>,
}

/// A request that was refused; nothing has changed.
#[derive(Debug)]
pub(super) struct Refusal {
    status: u16,
    code: &'static str,
    message: String,
    remedy: String,
    /// The methods that would be allowed.
    allowed: Option<&'static str>,
}

impl Answer {
    /// This, in JSON.
    pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(mut text) => {
                text.push(b'\n');
                Self::text(status, "application/json", text)
            }
            // It holds no map whose keys are not text.
            Err(_) => Self::empty(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    /// This text.
    pub(super) fn text(
        status: StatusCode,
        content_type: &'static str,
        text: impl Into<Bytes>,
    ) -> Self {
        Self {
            status,
            body: Either::Left(Full::new(text.into())),
            content_type,
            allowed: None,
        }
    }

    /// Nothing but the status.
    pub(super) fn empty(status: StatusCode) -> Self {
        Self::text(status, "", Bytes::new())
    }

    /// Line by line.
    pub(super) fn stream(stream: Stream) -> Self {
        Self {
            body: Either::Right(stream),
            ..Self::head_of_stream()
        }
    }

    /// The same without any line.
    pub(super) fn head_of_stream() -> Self {
        Self::text(StatusCode::OK, "application/x-ndjson", Bytes::new())
    }

    /// The answer to a request that nothing came of but a panic.
    pub(super) fn failure(error: &JoinError) -> Self {
        error!(%error, "a request has failed");
        Self::refusal(&Refusal::new(
            500,
            "internal",
            "the daemon has failed; its log says where",
            "report it",
        ))
    }

    pub(super) fn refusal(refusal: &Refusal) -> Self {
        let status = StatusCode::from_u16(refusal.status);
        let error = ErrorView {
            code: refusal.code.to_owned(),
            message: one_line(&refusal.message),
            remedy: one_line(&refusal.remedy),
        };
        Self {
            allowed: refusal.allowed,
            ..Self::json(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &error)
        }
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let mut response = Response::new(self.body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if !self.content_type.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        }
        if let Some(allowed) = self.allowed {
            headers.insert(ALLOW, HeaderValue::from_static(allowed));
        }
        response
    }
}

impl Refusal {
    pub(super) fn new(
        status: u16,
        code: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            remedy: remedy.into(),
            allowed: None,
        }
    }

    /// What is wrong.
    pub(super) fn message(&self) -> &str {
        &self.message
    }

    /// A method that the path does not take.
    pub(super) fn method(message: impl Into<String>, allowed: &'static str) -> Self {
        let remedy = format!("use {allowed}");
        Self {
            allowed: Some(allowed),
            ..Self::new(405, "method_not_allowed", message, remedy)
        }
    }

    /// A request that says nothing that can be understood.
    pub(super) fn bad_request(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(400, "bad_request", message, remedy)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let (status, code) = match &failure {
            Failure::Mistake(mistake) => match mistake.kind {
                Kind::Invalid => (400, "invalid_setting"),
                Kind::CidTaken => (409, "cid_taken"),
                Kind::PathTaken => (409, "path_taken"),
                Kind::CidAmbiguous => (409, "cid_ambiguous"),
                Kind::TooMany => (409, "too_many_vms"),
                Kind::Conflict => (409, "conflict"),
            },
            Failure::NoSuchVm(_) => (404, "no_such_vm"),
            Failure::NoSuchConnection(_) => (404, "no_such_connection"),
            Failure::NoConfig => (409, "no_config"),
            Failure::System(_) | Failure::HalfWay { .. } => (500, "system"),
        };
        Self::new(status, code, failure.message(), failure.remedy())
    }
}
