package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"cowblk/backend/daemon"
)

// info names the programs of front-ends if the daemon could not, and the pending front-end.
func TestFrontEndRows(t *testing.T) {
	me := int32(os.Getpid())
	name := daemon.ProcessName(me)
	rows := frontEndRows(&daemon.DiskInfo{
		FrontEnd: &daemon.FrontEnd{PID: me, UID: 7, Since: time.Now()},
		Waiting:  &daemon.FrontEnd{PID: 0, UID: 8, Name: "other", Since: time.Now()},
	}, "/run/a.sock")
	if len(rows) != 2 || name == "" {
		t.Fatal(rows, name)
	}
	for i, want := range []string{fmt.Sprintf("process %d (%s) of user 7 since ", me, name),
		"process 0 (other) of user 8 since "} {
		if !strings.HasPrefix(rows[i][1], want) {
			t.Errorf("row %q, expected %q", rows[i], want)
		}
	}
	if rows := frontEndRows(&daemon.DiskInfo{}, "/run/a.sock"); len(rows) != 0 {
		t.Error(rows)
	}
}

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
	if on, found := reconnects([]string{"qemu", "-chardev",
		"socket,path=/run/a,,b.sock,reconnect=1"}, "/run/a,b.sock"); !on || !found {
		t.Error("a comma in the path")
	}
}
