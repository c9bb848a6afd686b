// Package strictjson decodes the JSON documents of a store: it accepts exactly what every other
// program that follows cow/FORMAT.md accepts.
//
// encoding/json compares member names without regard to case, takes the last of several members of
// one name, ignores missing members, stops behind the first value of a decoder, ignores null and
// replaces invalid UTF-8. Here all of that is an error, and so are numbers with a fraction or an
// exponent, or beyond their type.
package strictjson
