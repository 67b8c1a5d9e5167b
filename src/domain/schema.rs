//! How the values that travel as strings look in the OpenAPI document.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::node::Address;

impl PartialSchema for Address {
    fn schema() -> RefOr<Schema> {
        RefOr::T(Schema::Object(
            ObjectBuilder::new()
                .schema_type(Type::String)
                .description(Some("host:port; IPv6 literals in brackets"))
                .pattern(Some(r"^(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):[0-9]{1,5}$"))
                .examples(["127.0.0.1:7001"])
                .build(),
        ))
    }
}

impl ToSchema for Address {}
