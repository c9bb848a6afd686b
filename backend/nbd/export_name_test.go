package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os/exec"
	"testing"

	"cowblk/internal/test"
)

// oldReply reads the reply to EXPORT_NAME.
func (c *script) oldReply(zeros bool) (size uint64, flags uint16) {
	c.t.Helper()
	b := c.take(exportNameLen)
	if zeros {
		if z := c.take(exportNameZeros); !bytes.Equal(z, make([]byte, exportNameZeros)) {
			c.t.Errorf("not zeros: % x", z)
		}
	}
	return binary.BigEndian.Uint64(b), binary.BigEndian.Uint16(b[8:])
}

// EXPORT_NAME works after any other options, with zeros or without as the client's flags say;
// transmission follows.
func TestExportName(t *testing.T) {
	x, y := randomDisk(8<<10), randomDisk(4<<10)
	_, a := start(t, Options{}, map[string]Disk{"x": x, "y": y})
	for _, flags := range []byte{0, 1, 2, 3} { // FIXED_NEWSTYLE, NO_ZEROES
		for _, before := range []string{"nothing", "LIST", "INFO of another", "INFO of nothing",
			"GO of nothing", "an unknown option"} {
			t.Run(fmt.Sprintf("flags %d, after %s", flags, before), func(t *testing.T) {
				c := &script{dial(t, a), t}
				if g := binary.BigEndian.Uint16(c.take(greetingLen)[16:]); g != 3 {
					t.Fatalf("handshake flags %#x", g)
				}
				c.give([]byte{0, 0, 0, flags})
				id, data, last := uint32(0), []byte(nil), uint32(0)
				switch before {
				case "LIST":
					id, last = optList, repAck
				case "INFO of another":
					id, data, last = optInfo, choice("y"), repAck
				case "INFO of nothing":
					id, data, last = optInfo, choice("z"), repErrUnknown
				case "GO of nothing":
					id, data, last = optGo, choice("z"), repErrUnknown
				case "an unknown option":
					id, last = 99, 1<<31|1
				}
				if id != 0 {
					c.give(option(id, data))
					for kind := uint32(0); kind != last; {
						kind, _ = c.optionReply(id)
					}
				}
				// The first request is in the same write: the reply must not wait for further
				// input.
				c.give(append(option(optExportName, []byte("x")), command(cmdRead, 0, 9, 512,
					4096)...))
				if size, tf := c.oldReply(flags&2 == 0); size != 8<<10 || tf != transmissionFlags {
					t.Errorf("size %d, flags %#x", size, tf)
				}
				if e := c.reply(9); e != 0 || !bytes.Equal(c.take(4096), x.data[512:512+4096]) {
					t.Errorf("read: error %d or another content", e)
				}
				c.give(command(cmdWrite, 0, 10, 0, 0))
				test.Equal(t, c.reply(10), nbdEPERM, "write: error")
				c.give(command(cmdDisc, 0, 0, 0, 0))
				c.closed()
			})
		}
	}
}

// The empty name selects the only export; ABORT instead is answered.
func TestExportNameDefault(t *testing.T) {
	_, a := start(t, Options{PerExport: 1}, map[string]Disk{"x": randomDisk(512)})
	c := greeted(t, a)
	c.give(option(optExportName, nil))
	if size, _ := c.oldReply(true); size != 512 {
		t.Errorf("size %d", size)
	}
	crowded := greeted(t, a)
	crowded.give(option(optExportName, []byte("x")))
	crowded.closed()
	c.Close()
	c = greeted(t, a)
	c.give(option(optAbort, nil))
	if kind, _ := c.optionReply(optAbort); kind != repAck {
		t.Errorf("ABORT: %#x", kind)
	}
	c.closed()
}

// python is the distribution's, which has the modules of its packages.
const python = "/usr/bin/python3"

// libnbd without fixed newstyle uses only EXPORT_NAME.
func TestExportNameLibnbd(t *testing.T) {
	if err := exec.Command(python, "-c", "import nbd").Run(); err != nil {
		t.Skip("python3-libnbd is not installed; make deps installs it")
	}
	_, a := start(t, Options{}, map[string]Disk{"x": randomDisk(8 << 10), "y": randomDisk(512)})
	for flags := range 4 {
		out, err := exec.Command(python, "-c", `
import nbd, sys
h = nbd.NBD()
h.set_handshake_flags(int(sys.argv[1]))
h.set_export_name("x")
h.connect_unix(sys.argv[2])
print(h.get_size(), h.is_read_only(), len(h.pread(4096, 512)))
h.shutdown()`, fmt.Sprint(flags), a.Path).CombinedOutput()
		if string(out) != "8192 True 4096\n" {
			t.Errorf("handshake flags %d: %v\n%s", flags, err, out)
		}
	}
}
