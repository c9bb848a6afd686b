package vhost

// Supported returns the messages of handlers.
func Supported() (all []Request) {
	for r := range handlers {
		if lookup(Request(r)) != nil {
			all = append(all, Request(r))
		}
	}
	return all
}
