{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{/*
The values that have more than one spelling, each once: YAML of {routingMode, tunnelProtocol,
nativeRoutingCIDR, kubeProxyReplacement (the word), replaces, socketLB, nodePort, externalIPs, hostPort, podCIDRs}.  Old spellings (also below global., as in the
first charts of Cilium) are taken when the new one is empty; what contradicts each other fails.
*/}}
{{- define "cilium.normal" -}}
{{- $values := .Values -}}

{{- $mode := $values.routingMode -}}
{{- $protocol := $values.tunnelProtocol -}}
{{- with $values.tunnel -}}
  {{- $meant := ternary "native" "tunnel" (eq . "disabled") -}}
  {{- if and $mode (ne $mode $meant) -}}
    {{- fail (printf "tunnel=%s contradicts routingMode=%s: give routingMode only" . $mode) -}}
  {{- end -}}
  {{- if and $protocol (eq $meant "tunnel") (ne $protocol .) -}}
    {{- fail (printf "tunnel=%s contradicts tunnelProtocol=%s: give tunnelProtocol only" . $protocol) -}}
  {{- end -}}
  {{- $mode = $meant -}}
  {{- if eq $meant "tunnel" -}}{{- $protocol = . -}}{{- end -}}
{{- end -}}
{{- $mode = $mode | default "tunnel" -}}
{{- $protocol = $protocol | default "vxlan" -}}
{{- if eq $protocol "geneve" -}}
  {{- fail "tunnelProtocol=geneve is not supported by this version: use vxlan" -}}
{{- end -}}

{{- $native := $values.ipv4NativeRoutingCIDR -}}
{{- with $values.nativeRoutingCIDR -}}
  {{- if and $native (ne $native .) -}}
    {{- fail (printf "nativeRoutingCIDR=%s contradicts ipv4NativeRoutingCIDR=%s: give the latter only" . $native) -}}
  {{- end -}}
  {{- $native = . -}}
{{- end -}}
{{- if not (or $values.ipv4.enabled $values.ipv6.enabled) -}}
  {{- fail "ipv4.enabled=false needs ipv6.enabled=true: pods need an address of one family" -}}
{{- end -}}
{{- if and (eq $mode "native") (not $native) $values.ipv4.enabled $values.enableIPv4Masquerade -}}
  {{- fail "routingMode=native needs ipv4NativeRoutingCIDR: without it pods would be masqueraded towards each other; or set enableIPv4Masquerade=false" -}}
{{- end -}}
{{- if and (eq $mode "native") $values.ipv6.enabled $values.enableIPv6Masquerade (not $values.ipv6NativeRoutingCIDR) -}}
  {{- fail "routingMode=native with ipv6.enabled needs ipv6NativeRoutingCIDR: without it pods would be masqueraded towards each other; or set enableIPv6Masquerade=false" -}}
{{- end -}}

{{- $word := $values.kubeProxyReplacement | toString -}}
{{- $replacement := has $word (list "true" "strict" "probe") -}}
{{- $parts := dict -}}
{{- range $name := list "nodePort" "externalIPs" "hostPort" -}}
  {{- $part := (get $values $name).enabled -}}
  {{- if and (kindIs "bool" $part) (ne $part $replacement) (not (has $word (list "partial" "probe"))) -}}
    {{- fail (printf "%s.enabled=%t contradicts kubeProxyReplacement=%s: give that alone, or partial with the kinds that are to be served" $name $part $word) -}}
  {{- end -}}
  {{- $_ := set $parts $name (ternary $part $replacement (kindIs "bool" $part)) -}}
{{- end -}}

{{- $socket := $values.socketLB.enabled -}}
{{- with $values.hostServices -}}
  {{- if kindIs "bool" .enabled -}}
    {{- if and (kindIs "bool" $socket) (ne $socket .enabled) -}}
      {{- fail (printf "hostServices.enabled=%t contradicts socketLB.enabled=%t: give the latter only" .enabled $socket) -}}
    {{- end -}}
    {{- $socket = .enabled -}}
  {{- end -}}
{{- end -}}
{{- if not (kindIs "bool" $socket) -}}{{- $socket = $replacement -}}{{- end -}}

{{- $pool := $values.ipam.operator -}}
{{- $cidrs := $pool.clusterPoolIPv4PodCIDRList -}}
{{- if kindIs "string" $cidrs -}}{{- $cidrs = $cidrs | replace "," " " | splitList " " | compact -}}{{- end -}}
{{- with $pool.clusterPoolIPv4PodCIDR -}}
  {{- if and $cidrs (ne (join " " $cidrs) .) -}}
    {{- fail (printf "ipam.operator.clusterPoolIPv4PodCIDR=%s contradicts clusterPoolIPv4PodCIDRList=%s: give the latter only" . (join "," $cidrs)) -}}
  {{- end -}}
  {{- $cidrs = list . -}}
{{- end -}}

{{- $cidrs6 := $pool.clusterPoolIPv6PodCIDRList -}}
{{- if kindIs "string" $cidrs6 -}}{{- $cidrs6 = $cidrs6 | replace "," " " | splitList " " | compact -}}{{- end -}}

{{- dict "routingMode" $mode "tunnelProtocol" $protocol "nativeRoutingCIDR" ($native | default "")
      "kubeProxyReplacement" $word "replaces" $replacement "socketLB" $socket
      "nodePort" $parts.nodePort "externalIPs" $parts.externalIPs "hostPort" $parts.hostPort
      "podCIDRs" ($cidrs | default (list "10.0.0.0/8"))
      "podCIDRs6" ($cidrs6 | default (list "fd00::/104")) | toYaml -}}
{{- end -}}

{{/*
Every template begins with this: what is given below global. is put in its place (the second time changes
nothing), and what this version does not have is refused before anything else is judged.
*/}}
{{- define "cilium.prepare" -}}
{{- include "cilium.overlay" (dict "below" .Values "above" (.Values.global | default dict)) -}}
{{- include "cilium.refuse" . -}}
{{- end -}}

{{/* Like mergeOverwrite, which would leave out false and 0. */}}
{{- define "cilium.overlay" -}}
{{- range $name, $value := .above -}}
  {{- if and (kindIs "map" $value) (kindIs "map" (get $.below $name)) -}}
    {{- include "cilium.overlay" (dict "below" (get $.below $name) "above" $value) -}}
  {{- else -}}
    {{- $_ := set $.below $name $value -}}
  {{- end -}}
{{- end -}}
{{- end -}}

{{/*
Values of Cilium that this version does not have: who sets one believes that it is done, so the install fails
with a sentence that names it.  Each row: the path, what it may be, why it can be nothing else.
*/}}
{{- define "cilium.refuse" -}}
{{- $values := .Values -}}
{{- range $row := (.Files.Get "files/unsupported.yaml" | fromYaml).rows -}}
  {{- $found := $values -}}
  {{- range $name := splitList "." $row.value -}}
    {{- if kindIs "map" $found -}}{{- $found = get $found $name -}}{{- else -}}{{- $found = "" -}}{{- end -}}
  {{- end -}}
  {{- $text := $found | toJson | trimAll "\"" -}}
  {{- if not (has $text (concat (list "" "null") ($row.accepted | default (list "false")))) -}}
    {{- fail (printf "%s=%s is not supported by this version: %s" $row.value $text $row.reason) -}}
  {{- end -}}
{{- end -}}
{{- end -}}
