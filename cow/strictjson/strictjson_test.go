package strictjson

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

type inner struct {
	Name string `json:"name"`
	Yes  bool   `json:"yes"`
}

type document struct {
	Version int             `json:"version"`
	Size    int64           `json:"size"`
	Dev     uint64          `json:"dev"`
	ID      uuid.UUID       `json:"id"`
	At      time.Time       `json:"at"`
	Inner   *inner          `json:"inner,omitempty"`
	List    []inner         `json:"list"`
	Tag     string          `json:"tag,omitempty"`
	May     json.RawMessage `json:"may-ignore,omitempty"`
}

const good = `{"version": 1, "size": 4096, "dev": 18446744073709551615, "id": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
 "at": "2006-11-27T12:00:00Z", "inner": {"name": "a\u00e4\ud83d\ude00", "yes": true}, "list": [{"name": "", "yes": false}], "may-ignore": {"x": [1, {"y": null}]}}`

func TestDecode(t *testing.T) {
	var d, std document
	if err := Decode([]byte(good), &d, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(good), &std); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(d, std) {
		t.Errorf("expected what encoding/json reads, %+v, found %+v", std, d)
	}
	if n, ok := Number([]byte(good), "version"); !ok || n != 1 {
		t.Errorf("version: expected 1, found %d, %v", n, ok)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, c := range []struct{ what, from, to string }{
		{"another case", `"version"`, `"Version"`},
		{"another case beside", `"version": 1`, `"version": 1, "VERSION": 2`},
		{"case of an inner member", `"yes": true`, `"Yes": true`},
		{"a member twice", `"version": 1`, `"version": 1, "version": 1`},
		{"an inner member twice", `"yes": true`, `"yes": true, "yes": false`},
		{"a name twice, one of them escaped", `"version": 1`, `"version": 1, "\u0076ersion": 1`},
		{"a member twice in what may be ignored", `"x": [1`, `"x": 1, "x": [1`},
		{"a missing member", `"version": 1, `, ``},
		{"a missing inner member", `, "yes": true`, ``},
		{"an unknown member", `"version": 1`, `"version": 1, "new": 1`},
		{"trailing content", `}}`, `}} {}`},
		{"trailing bytes", `}}`, "}}\x00"},
		{"a float", `4096`, `4096.0`},
		{"an exponent", `4096`, `4e3`},
		{"a leading zero", `4096`, `04096`},
		{"a plus", `4096`, `+4096`},
		{"minus zero", `4096`, `-0`},
		{"a number beyond its type", `4096`, `9223372036854775808`},
		{"a number beyond uint64", `18446744073709551615`, `18446744073709551616`},
		{"a negative unsigned number", `18446744073709551615`, `-1`},
		{"a number in a string", `4096`, `"4096"`},
		{"null", `4096`, `null`},
		{"null for an object", `{"name": "a\u00e4\ud83d\ude00", "yes": true}`, `null`},
		{"a UUID in capitals", `6ba7b810`, `6BA7B810`},
		{"a UUID as URN", `"6ba7b810-`, `"urn:uuid:6ba7b810-`},
		{"no time", `2006-11-27T`, `2006-11-27 `},
		{"half a character", `\ud83d\ude00`, `\ud83d`},
		{"a control character", `"a\u00e4`, "\"a\x01"},
		{"no UTF-8", `"a\u00e4`, "\"a\xff"},
		{"a comma too many", `"yes": true}`, `"yes": true,}`},
		{"a comment", `"version"`, `/* */ "version"`},
		{"an array for an object", `{"name": "", "yes": false}`, `[]`},
		{"what may be ignored is no object", `{"x": [1, {"y": null}]}`, `[1]`},
		{"depth", `{"y": null}`, strings.Repeat("[", 40) + strings.Repeat("]", 40)},
		{"endless depth", `{"y": null}`, strings.Repeat("[", 1<<20)},
		{"a byte order mark", `{"version"`, "\ufeff{\"version\""},
	} {
		text := strings.Replace(good, c.from, c.to, 1)
		if text == good {
			t.Fatalf("%s: nothing changed", c.what)
		}
		if err := Decode([]byte(text), new(document), Options{}); err == nil {
			t.Errorf("%s: expected an error, found none", c.what)
		}
	}
	for n := range len(good) {
		if err := Decode([]byte(good[:n]), new(document), Options{}); err == nil {
			t.Errorf("the first %d bytes: expected an error, found none", n)
		}
	}
	if err := Decode([]byte(strings.Replace(good, `"version": 1`, `"version": 1, "new": {}`, 1)), new(document), Options{IgnoreUnknown: true}); err != nil {
		t.Errorf("an unknown member that is to be ignored: %v", err)
	}
}

// FuzzDecode: nothing panics, and what is read is what encoding/json reads, and is read again from what it writes.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`{"version":1,"Version":2}`))
	f.Add([]byte(`{"a":"\ud800"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var d, std, again document
		if Decode(data, &d, Options{}) != nil {
			return
		}
		if err := json.Unmarshal(data, &std); err != nil {
			t.Fatalf("%q: encoding/json refuses it: %v", data, err)
		}
		if !reflect.DeepEqual(d, std) {
			t.Fatalf("%q: expected %+v, found %+v", data, std, d)
		}
		text, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if err := Decode(text, &again, Options{}); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	})
}
