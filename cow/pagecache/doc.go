// Package pagecache reads files from the kernel's page cache without system calls: by copies from a
// mapping, as far as the pages are known to be there.
//
// A Mapping knows which pages were read from the page cache before and copies only those. It times
// each copy, and finds out when a page had been evicted after all.
package pagecache
