//! `#[derive(FromRow)]`.

use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt as _;
use syn::spanned::Spanned as _;
use syn::{Data, DeriveInput, Error, Field, Fields, LitStr};

pub(crate) fn expand(item: TokenStream) -> TokenStream {
    implementation(item).unwrap_or_else(|error| error.to_compile_error())
}

fn implementation(item: TokenStream) -> Result<TokenStream, Error> {
    let input: DeriveInput = syn::parse2(item)?;
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(input.span(), "FromRow is derived for structs"));
    };
    let constructed = match &data.fields {
        Fields::Named(fields) => {
            let fields = fields.named.iter().map(by_name).collect::<Result<Vec<_>, _>>()?;
            quote! { Self { #(#fields),* } }
        }
        Fields::Unnamed(fields) => {
            let columns = 0..fields.unnamed.len();
            quote! { Self(#(row.take_at(#columns)?),*) }
        }
        Fields::Unit => return Err(Error::new(input.span(), "a unit struct reads no column")),
    };
    let name = &input.ident;
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    Ok(quote! {
        impl #generics ::hapax_guest::sql::FromRow for #name #arguments #bounds {
            fn from_row(
                mut row: ::hapax_guest::sql::Row,
            ) -> ::core::result::Result<Self, ::hapax_guest::sql::Error> {
                ::core::result::Result::Ok(#constructed)
            }
        }
    })
}

fn by_name(field: &Field) -> Result<TokenStream, Error> {
    let Some(ident) = &field.ident else {
        return Err(Error::new(field.span(), "a field without a name"));
    };
    let mut column = ident.unraw().to_string();
    for attribute in field.attrs.iter().filter(|attribute| attribute.path().is_ident("row")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("rename") {
                return Err(meta.error("expected `rename = \"column\"`"));
            }
            column = meta.value()?.parse::<LitStr>()?.value();
            Ok(())
        })?;
    }
    Ok(quote! { #ident: row.take(#column)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_by_name_and_tuple_fields_by_position() {
        let code = expand("struct S { id: i64, #[row(rename = \"type\")] kind: String }".parse().unwrap()).to_string();
        assert!(
            code.contains("id : row . take (\"id\") ?") && code.contains("kind : row . take (\"type\") ?"),
            "{code}"
        );
        let code = expand("struct S(i64, i64);".parse().unwrap()).to_string();
        assert!(code.contains("row . take_at (1usize) ?"), "{code}");
    }

    #[test]
    fn what_is_no_struct_is_a_compile_error() {
        for item in ["enum E { A }", "struct U;", "struct S { #[row(other = \"x\")] a: i64 }"] {
            assert!(expand(item.parse().unwrap()).to_string().contains("compile_error"), "{item}");
        }
    }
}
