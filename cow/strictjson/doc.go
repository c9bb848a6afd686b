// Package strictjson decodes the JSON documents of a store: what one program takes for a document, every other one that
// keeps to cow/FORMAT.md takes for the same.
//
// encoding/json compares names of members without regard to case, takes the last of several members of one name, leaves
// out what is missing, stops behind the first value of a decoder, reads null as nothing and replaces what is no UTF-8.
// Here all of that is an error, and so are numbers with a fraction or an exponent, or beyond their type.
package strictjson
