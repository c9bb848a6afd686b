package way

import (
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// unmappedRoot returns the UID of the machine's root in a user namespace without a mapping for it
// (user_namespaces(7)): the overflow user, if it owns the root directory; else 0.
var unmappedRoot = sync.OnceValue(func() uint32 {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return 0
	}
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil || mapped(string(text), st.Uid) {
		return 0
	}
	return st.Uid
})

// mapped reports whether the user namespace of this uid_map has the number uid.
func mapped(uidMap string, uid uint32) bool {
	for line := range strings.Lines(uidMap) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return true // unknown: as outside of namespaces
		}
		first, err := strconv.ParseUint(f[0], 10, 32)
		count, cerr := strconv.ParseUint(f[2], 10, 32)
		if err != nil || cerr != nil || uint64(uid) >= first && uint64(uid)-first < count {
			return true
		}
	}
	return strings.TrimSpace(uidMap) == ""
}
