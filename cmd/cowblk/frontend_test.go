package main

import (
	"strings"
	"testing"
)

func TestReconnects(t *testing.T) {
	for line, want := range map[string][2]bool{
		"qemu -chardev socket,id=c,path=/run/a.sock,reconnect=1":                    {true, true},
		"qemu -chardev socket,id=c,reconnect-ms=1000,path=/run/a.sock":              {true, true},
		"qemu --chardev socket,id=c,path=/run/a.sock,reconnect=1 -m 1":              {true, true},
		"qemu -chardev socket,id=c,path=/run/a.sock":                                {false, true},
		"qemu -chardev socket,id=c,path=/run/a.sock,reconnect=0":                    {false, true},
		"qemu -chardev socket,id=c,path=/run/b.sock,reconnect=1":                    {false, false},
		"qemu -chardev socket,id=c,path=/run/a.sock2,reconnect=1":                   {false, false},
		"qemu -device x,path=/run/a.sock,reconnect=1":                               {false, false},
		"qemu -chardev socket,path=/b,reconnect=1 -chardev socket,path=/run/a.sock": {false, true},
		"qemu -chardev": {false, false},
		"":              {false, false},
	} {
		on, found := reconnects(strings.Split(line, " "), "/run/a.sock")
		if on != want[0] || found != want[1] {
			t.Errorf("%s: %t, %t", line, on, found)
		}
	}
	if on, found := reconnects([]string{"qemu", "-chardev", "socket,path=/run/a,,b.sock,reconnect=1"}, "/run/a,b.sock"); !on || !found {
		t.Error("a comma in the path")
	}
}
