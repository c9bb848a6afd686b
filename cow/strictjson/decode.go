package strictjson

import (
	"encoding"
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options of Decode. The zero value refuses members that the type does not have.
type Options struct {
	// IgnoreUnknown ignores such members: for information that nothing depends on.
	IgnoreUnknown bool
}

// Decode decodes a document into the struct that v points to. A member's name is exactly that of
// the field's json tag. It is required unless the tag has omitempty or omitzero, in which case an
// empty string or array is refused, because encoding/json would omit it. Fields are integers,
// strings, booleans, structs, slices, pointers to these, types with encoding.TextUnmarshaler, whose
// text must be the one that they would marshal, time.Time in the form of timeText, and
// json.RawMessage: any object. Null is accepted only for a required array, as encoding/json writes
// an empty one. After an error v has the values read before it.
func Decode(data []byte, v any, o Options) error {
	tree, err := parse(data)
	if err != nil {
		return err
	}
	d := decoder{o}
	return d.value("", tree, reflect.ValueOf(v).Elem())
}

// Number returns a member of the outermost object that is a number, of a document that is otherwise
// unknown; false: no document, or no such member.
func Number(data []byte, name string) (int64, bool) {
	tree, err := parse(data)
	if err != nil {
		return 0, false
	}
	m := tree.member(name)
	if m == nil || m.kind != kindNumber {
		return 0, false
	}
	n, err := strconv.ParseInt(m.text, 10, 64)
	return n, err == nil
}

type decoder struct{ Options }

var (
	rawType  = reflect.TypeFor[json.RawMessage]()
	timeType = reflect.TypeFor[time.Time]()
)

// timeText is a time in UTC (RFC 3339), with capital letters and up to nine digits of a second: a
// subset of what time.Time accepts, and what encoding/json writes for a time in UTC.
var timeText = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z$`)

// wrong is the error of a value that is not the expected one.
func wrong(at string, expected string, v *value) error {
	found := string(v.kind)
	if v.kind == kindNumber || v.kind == kindString {
		found = string(v.raw)
	}
	return fmt.Errorf("%s: expected %s, found %s", place(at), expected, found)
}

func place(at string) string {
	if at == "" {
		return "document"
	}
	return at
}

func (d *decoder) value(at string, v *value, to reflect.Value) error {
	if to.Type() == rawType {
		if v.kind != kindObject {
			return wrong(at, string(kindObject), v)
		}
		to.SetBytes(slices.Clone(v.raw))
		return nil
	}
	if u, ok := to.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return d.text(at, v, u, to)
	}
	switch to.Kind() {
	case reflect.Pointer:
		to.Set(reflect.New(to.Type().Elem()))
		return d.value(at, v, to.Elem())
	case reflect.Struct:
		return d.object(at, v, to)
	case reflect.Slice:
		return d.array(at, v, to)
	case reflect.String:
		if v.kind != kindString {
			return wrong(at, string(kindString), v)
		}
		to.SetString(v.text)
	case reflect.Bool:
		if v.kind != kindBool {
			return wrong(at, string(kindBool), v)
		}
		to.SetBool(v.yes)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := strconv.ParseInt(v.text, 10, to.Type().Bits())
		if v.kind != kindNumber || err != nil {
			return wrong(at, fmt.Sprintf("an integer of %d bits", to.Type().Bits()), v)
		}
		to.SetInt(n)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(v.text, 10, to.Type().Bits())
		if v.kind != kindNumber || err != nil {
			return wrong(at, fmt.Sprintf("an integer from 0, of %d bits", to.Type().Bits()), v)
		}
		to.SetUint(n)
	default:
		return fmt.Errorf("%s: type %s: not one that a document has", place(at), to.Type())
	}
	return nil
}

// text decodes a string by the type's own method. Several texts of a time are valid: with zeros at
// the end of the fraction.
func (d *decoder) text(at string, v *value, u encoding.TextUnmarshaler, to reflect.Value) error {
	if v.kind != kindString {
		return wrong(at, string(kindString), v)
	}
	if to.Type() == timeType && !timeText.MatchString(v.text) {
		return wrong(at, "a time like 2006-01-02T15:04:05.999999999Z, in UTC", v)
	}
	if err := u.UnmarshalText([]byte(v.text)); err != nil {
		return fmt.Errorf("%s: %w", place(at), err)
	}
	m, ok := to.Interface().(encoding.TextMarshaler)
	if !ok || to.Type() == timeType {
		return nil
	}
	if text, err := m.MarshalText(); err != nil || string(text) != v.text {
		return wrong(at, strconv.Quote(string(text)), v)
	}
	return nil
}

func (d *decoder) array(at string, v *value, to reflect.Value) error {
	if v.kind == kindNull {
		to.SetZero()
		return nil
	}
	if v.kind != kindArray {
		return wrong(at, string(kindArray), v)
	}
	to.Set(reflect.MakeSlice(to.Type(), len(v.members), len(v.members)))
	for i, m := range v.members {
		if err := d.value(fmt.Sprintf("%s[%d]", at, i), m, to.Index(i)); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) object(at string, v *value, to reflect.Value) error {
	if v.kind != kindObject {
		return wrong(at, string(kindObject), v)
	}
	known := map[string]bool{}
	t := to.Type()
	for i := range t.NumField() {
		name, options, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		known[name] = true
		inner := strings.TrimPrefix(at+"."+name, ".")
		m := v.member(name)
		if m == nil {
			if options == "" {
				return fmt.Errorf("%s: expected a member %q, found none", place(at), name)
			}
			continue
		}
		if err := d.value(inner, m, to.Field(i)); err != nil {
			return err
		}
		if f := to.Field(i); options != "" && (f.Kind() == reflect.String ||
			f.Kind() == reflect.Slice) && f.Len() == 0 {
			return wrong(inner, "one that is not empty, or no such member", m)
		}
	}
	for _, name := range v.names {
		if !known[name] && !d.IgnoreUnknown {
			return fmt.Errorf("%s: member %q is not known", place(at), name)
		}
	}
	return nil
}
