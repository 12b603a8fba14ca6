// SPDX-License-Identifier: Apache-2.0

// The deathstar of Cilium's getting started guide: lets ships land, and has a hole.
package main

import (
	"fmt"
	"log"
	"net/http"
)

func main() {
	http.HandleFunc("POST /v1/request-landing", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "Ship landed")
	})
	http.HandleFunc("PUT /v1/exhaust-port", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "Panic: deathstar exploded", http.StatusServiceUnavailable)
	})
	log.Fatal(http.ListenAndServe(":80", nil))
}
