package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"syscall"
	"testing"

	"cowblk/internal/test"
)

// allocated returns the bytes that f allocates, on all goroutines.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func nameOf(n uint32, rest ...byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, n), rest...)
}

// Each client is disconnected, or refused and then continues, and costs little memory.
func TestHostileHandshake(t *testing.T) {
	long := bytes.Repeat([]byte("x"), maxName+1)
	tests := []struct {
		name string
		send []byte
		id   uint32 // of the option
		want uint32 // expected reply; 0: disconnected
	}{
		{"option of 4 GiB", optionOf(optGo, 1<<32-1, nil), 0, 0},
		{"option just too long", optionOf(99, maxOption+1, make([]byte, maxOption+1)), 0, 0},
		{"longest option", option(99, make([]byte, maxOption)), 99, 1<<31 | 1},
		{"name of 4 GiB", option(optGo, nameOf(1<<32-1, 0, 0)), optGo, repErrInvalid},
		{"name of 2 GiB - 1", option(optInfo, nameOf(1<<31-1, 0, 0)), optInfo, repErrInvalid},
		{"name longer than the option", option(optGo, nameOf(3, 'x', 0, 0)), optGo, repErrInvalid},
		{"name too long", option(optGo, append(nameOf(maxName+1, long...), 0, 0)), optGo,
			repErrInvalid},
		{"unknown longest name", option(optGo, append(nameOf(maxName, long[1:]...), 0, 0)), optGo,
			repErrUnknown},
		{"more requests than data", option(optGo, nameOf(1, 'x', 255, 255)), optGo, repErrInvalid},
		{"more data than requests", option(optGo, nameOf(1, 'x', 0, 0, 0)), optGo, repErrInvalid},
		{"no number of requests", option(optGo, nameOf(1, 'x')), optGo, repErrInvalid},
		{"empty GO", option(optGo, nil), optGo, repErrInvalid},
		{"unknown name", option(optGo, choice("nothing")), optGo, repErrUnknown},
		{"name with a zero", option(optGo, choice("x\x00")), optGo, repErrUnknown},
		{"LIST with data", option(optList, []byte{1}), optList, repErrInvalid},
		{"EXPORT_NAME of nothing", option(optExportName, []byte("nothing")), 0, 0},
		{"EXPORT_NAME that is empty, of two", option(optExportName, nil), 0, 0},
		{"EXPORT_NAME that is too long", option(optExportName, long), 0, 0},
		{"EXPORT_NAME of 4 GiB", optionOf(optExportName, 1<<32-1, nil), 0, 0},
		{"STARTTLS", option(5, nil), 5, 1<<31 | 1},
		{"STRUCTURED_REPLY", option(8, nil), 8, 1<<31 | 1},
		{"bad magic", append([]byte{0}, option(optGo, choice("x"))[1:]...), 0, 0},
	}
	d := randomDisk(1 << 20)
	_, a := start(t, Options{}, map[string]Disk{"x": d, "y": randomDisk(512)})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := allocated(func() {
				c := greeted(t, a)
				c.give(tt.send)
				if tt.want == 0 {
					c.closed()
					return
				}
				if kind, data := c.optionReply(tt.id); kind != tt.want {
					t.Fatalf("reply %#x %q, expected %#x", kind, data, tt.want)
				}
				// The stream is still in sync.
				c.give(option(optAbort, nil))
				if kind, _ := c.optionReply(optAbort); kind != repAck {
					t.Errorf("ABORT: %#x", kind)
				}
				c.closed()
			})
			if n > 1<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
	checkServes(t, a, "x", d)
}

func TestHostileClientFlags(t *testing.T) {
	_, a := start(t, Options{}, map[string]Disk{"x": randomDisk(512)})
	for _, flags := range [][]byte{{0, 0, 0, 4}, {0x80, 0, 0, 1}, {0, 1, 0, 3}} {
		c := &script{dial(t, a), t}
		c.take(greetingLen)
		c.give(append(flags, option(optGo, choice("x"))...))
		c.closed()
	}
}

func TestHostileOptionsWithoutEnd(t *testing.T) {
	_, a := start(t, Options{}, map[string]Disk{"x": randomDisk(512)})
	c := greeted(t, a)
	for range maxOptions {
		c.give(option(99, nil))
		c.optionReply(99)
	}
	c.Write(option(99, nil))
	c.closed()
}

// GO must not serve the export that INFO named.
func TestInfoThenGo(t *testing.T) {
	_, a := start(t, Options{}, map[string]Disk{"x": randomDisk(512), "y": randomDisk(1024)})
	c := greeted(t, a)
	info := func(id uint32, name string) (size uint64, flags uint16, last uint32) {
		c.give(option(id, choice(name)))
		for {
			kind, data := c.optionReply(id)
			if kind != repInfo {
				return size, flags, kind
			}
			if binary.BigEndian.Uint16(data) == 0 {
				size, flags = binary.BigEndian.Uint64(data[2:]), binary.BigEndian.Uint16(data[10:])
			}
		}
	}
	if size, flags, last := info(optInfo, "x"); size != 512 || flags != transmissionFlags ||
		last != repAck {
		t.Errorf("INFO x: %d bytes, flags %#x, %#x", size, flags, last)
	}
	if _, _, last := info(optGo, "z"); last != repErrUnknown {
		t.Errorf("GO z: %#x", last)
	}
	if size, flags, last := info(optGo, "y"); size != 1024 || flags != transmissionFlags ||
		last != repAck {
		t.Errorf("GO y: %d bytes, flags %#x, %#x", size, flags, last)
	}
}

// The reply to each bad request, after which the next one is answered correctly.
func TestHostileRequests(t *testing.T) {
	const size = 1<<20 + 512
	d := randomDisk(size)
	_, a := start(t, Options{}, map[string]Disk{"x": d})
	tests := []struct {
		name          string
		kind, flags   uint16
		offset        uint64
		length        uint32
		payload       int
		want          uint32
		disconnection bool
	}{
		{name: "beyond the end", offset: size - 512, length: 1024, want: nbdEINVAL},
		{name: "at the end", offset: size, length: 1, want: nbdEINVAL},
		{name: "offset overflows", offset: 1<<64 - 512, length: 512, want: nbdEINVAL},
		{name: "sum overflows", offset: 1<<64 - 1, length: 1<<32 - 1, want: nbdEINVAL},
		{name: "negative offset", offset: 1 << 63, length: 512, want: nbdEINVAL},
		{name: "too long", length: maxRequest + 1, want: nbdEINVAL},
		{name: "4 GiB", length: 1<<32 - 1, want: nbdEINVAL},
		{name: "FUA", flags: 1, length: 512, want: nbdEINVAL},
		{name: "unknown flags", flags: 0x8000, length: 512, want: nbdEINVAL},
		{name: "nothing", length: 0, want: 0},
		{name: "WRITE", kind: cmdWrite, length: 4096, payload: 4096, want: nbdEPERM},
		{name: "WRITE beyond the end", kind: cmdWrite, offset: 1 << 40, length: 512, payload: 512,
			want: nbdEPERM},
		{name: "long WRITE", kind: cmdWrite, length: 2 << 20, payload: 2 << 20, want: nbdEPERM},
		{name: "WRITE of 4 GiB", kind: cmdWrite, length: 1<<32 - 1, disconnection: true},
		{name: "FLUSH", kind: 3, want: nbdEINVAL},
		{name: "TRIM", kind: cmdTrim, length: 4096, want: nbdEPERM},
		{name: "TRIM of 4 GiB", kind: cmdTrim, length: 1<<32 - 1, want: nbdEPERM},
		{name: "CACHE", kind: 5, length: 4096, want: nbdEINVAL},
		{name: "WRITE_ZEROES", kind: cmdWriteZeroes, length: 4096, want: nbdEPERM},
		{name: "BLOCK_STATUS", kind: 7, length: 4096, want: nbdEINVAL},
		{name: "unknown", kind: 0xffff, length: 1<<32 - 1, want: nbdEINVAL},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := ready(t, a, "x")
			good := command(cmdRead, 0, 2, 512, 512)
			n := allocated(func() {
				payload := make([]byte, tt.payload)
				c.give(command(tt.kind, tt.flags, 1, tt.offset, tt.length))
				c.Write(payload)
				if tt.disconnection {
					c.closed()
					return
				}
				c.give(good)
				test.Equal(t, c.reply(1), tt.want, "error")
				if e := c.reply(2); e != 0 || !bytes.Equal(c.take(512), d.data[512:1024]) {
					t.Errorf("the next request: error %d", e)
				}
			})
			if n > uint64(tt.payload)+1<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
		})
	}
	t.Run("bad magic", func(t *testing.T) {
		c := ready(t, a, "x")
		c.give(make([]byte, requestLen))
		c.closed()
	})
	if !bytes.Equal(d.data, randomDisk(size).data) {
		t.Error("the disk has changed")
	}
	checkServes(t, a, "x", d)
}

// An error before the first piece of a reply is sent gives an error reply; later the client is
// disconnected.
func TestReadErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want uint32
	}{{syscall.EIO, nbdEIO}, {syscall.ENOMEM, nbdENOMEM}, {errors.New("any other"), nbdEIO},
		{nil, nbdEIO}} {
		d := randomDisk(4 << 20)
		d.fail, d.err = 1<<20, tt.err
		_, a := start(t, Options{}, map[string]Disk{"x": d})
		c := ready(t, a, "x")
		c.give(command(cmdRead, 0, 1, 2<<20, 2*chunkSize))
		c.give(command(cmdRead, 0, 2, 4096, 4096))
		test.Equal(t, c.reply(1), tt.want, "error", tt.err)
		if e := c.reply(2); e != 0 || !bytes.Equal(c.take(4096), d.data[4096:8192]) {
			t.Errorf("%v: the next request: error %d", tt.err, e)
		}
		c.give(command(cmdRead, 0, 3, 1<<20-chunkSize, 2*chunkSize))
		if e := c.reply(3); e != 0 || !bytes.Equal(c.take(chunkSize),
			d.data[1<<20-chunkSize:1<<20]) {
			t.Errorf("%v: the part that could be read: error %d", tt.err, e)
		}
		c.closed()
	}
}

// Many requests of all lengths in one write.
func TestPipelined(t *testing.T) {
	d := randomDisk(3 << 20)
	_, a := start(t, Options{}, map[string]Disk{"x": d})
	c := ready(t, a, "x")
	lengths := []int{1, 511, 512, 4096, 4097, chunkSize - 1, chunkSize, chunkSize + 1,
		2*chunkSize + 5, 2 << 20}
	var all []byte
	for i, n := range lengths {
		all = append(all, command(cmdRead, 0, uint64(i), uint64(i*1000), uint32(n))...)
	}
	c.give(append(all, command(cmdDisc, 0, 0, 0, 0)...))
	for i, n := range lengths {
		if e := c.reply(uint64(i)); e != 0 || !bytes.Equal(c.take(n), d.data[i*1000:i*1000+n]) {
			t.Errorf("read of %d bytes: error %d", n, e)
		}
	}
	c.closed()
}

// The client disconnects after each byte of a complete conversation.
func TestDisconnectAnywhere(t *testing.T) {
	d := randomDisk(1 << 20)
	// High limits, which are not under tt.
	s, a := start(t, Options{Connections: 1000, PerExport: 1000}, map[string]Disk{"x": d})
	talk := append([]byte{0, 0, 0, 1}, option(optList, nil)...)
	talk = append(talk, option(optInfo, choice("x"))...)
	talk = append(talk, option(optGo, choice("x"))...)
	talk = append(talk, command(cmdRead, 0, 1, 0, 1<<20)...)
	talk = append(append(talk, command(cmdWrite, 0, 2, 0, 8)...), make([]byte, 8)...)
	talk = append(talk, command(cmdDisc, 0, 3, 0, 0)...)
	for n := range len(talk) + 1 {
		c := dial(t, a)
		_, err := c.Write(talk[:n])
		test.Must(t, err)
		test.Must(t, c.Close())
	}
	checkServes(t, a, "x", d)
	test.Eventually(t, "all clients are gone", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.clients) == 0
	})
}
