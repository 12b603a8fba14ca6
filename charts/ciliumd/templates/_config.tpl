{{/* SPDX-License-Identifier: Apache-2.0 */}}

{{/* The keys of cilium-config, sorted; those of extraConfig last, so that they win. */}}
{{- define "cilium.config" -}}
{{- $values := .Values -}}
{{- $normal := include "cilium.normal" . | fromYaml -}}
{{- $config := dict
      "cluster-name" $values.cluster.name
      "cluster-id" (int $values.cluster.id)
      "k8s-namespace" .Release.Namespace
      "debug" $values.debug.enabled
      "routing-mode" $normal.routingMode
      "kube-proxy-replacement" $normal.kubeProxyReplacement
      "kube-proxy-replacement-healthz-bind-address" $values.kubeProxyReplacementHealthzBindAddr
      "bpf-lb-sock" $normal.socketLB
      "bpf-lb-sock-hostns-only" $values.socketLB.hostNamespaceOnly
      "bpf-lb-sock-terminate-pod-connections" $values.socketLB.terminatePodConnections
      "node-port-bind-protection" $values.nodePort.bindProtection
      "enable-auto-protect-node-port-range" $values.nodePort.autoProtectPortRange
      "enable-health-check-nodeport" $values.nodePort.enableHealthCheck
      "enable-node-port" $normal.nodePort
      "enable-external-ips" $normal.externalIPs
      "enable-host-port" $normal.hostPort
      "bpf-lb-mode" "snat"
      "bpf-lb-algorithm" "random"
      "bpf-lb-acceleration" "disabled"
      "bpf-lb-external-clusterip" $values.bpf.lbExternalClusterIP
      "enable-ipv4" $values.ipv4.enabled
      "enable-ipv6" $values.ipv6.enabled
      "enable-ipv4-masquerade" $values.enableIPv4Masquerade
      "enable-bpf-masquerade" true
      "enable-host-legacy-routing" $values.bpf.hostLegacyRouting
      "enable-tcx" $values.bpf.enableTCX
      "bpf-events-drop-enabled" $values.bpf.events.drop.enabled
      "bpf-events-policy-verdict-enabled" $values.bpf.events.policyVerdict.enabled
      "bpf-events-trace-enabled" $values.bpf.events.trace.enabled
      "datapath-mode" "veth"
      "ipam" $values.ipam.mode
      "enable-policy" $values.policyEnforcementMode
      "policy-audit-mode" $values.policyAuditMode
      "policy-deny-response" $values.policyDenyResponse
      "enable-node-selector-labels" $values.nodeSelectorLabels
      "identity-allocation-mode" $values.identityAllocationMode
      "procfs" "/host/proc"
      "cgroup-root" (ternary $values.cgroup.root "" $normal.socketLB)
      "cni-exclusive" $values.cni.exclusive
      "cni-chaining-mode" "none"
      "cni-uninstall" $values.cni.uninstall
      "enable-health-checking" $values.healthChecking
      "enable-endpoint-health-checking" (and $values.healthChecking $values.endpointHealthChecking.enabled)
      "agent-health-port" (int $values.healthPort)
      "agent-not-ready-taint-key" $values.agentNotReadyTaintKey
      "clean-cilium-state" $values.cleanState
      "clean-cilium-bpf-state" $values.cleanBpfState
      "identity-gc-interval" $values.operator.identityGCInterval
      "identity-heartbeat-timeout" $values.operator.identityHeartbeatTimeout
      "cilium-endpoint-gc-interval" $values.operator.endpointGCInterval
      "nodes-gc-interval" $values.operator.nodeGCInterval
      "unmanaged-pod-watcher-interval" (ternary (int $values.operator.unmanagedPodWatcher.intervalSeconds) 0 $values.operator.unmanagedPodWatcher.restart)
      "pod-restart-selector" $values.operator.unmanagedPodWatcher.selector
      "remove-cilium-node-taints" $values.operator.removeNodeTaints
      "set-cilium-node-taints" $values.operator.setNodeTaints
      "set-cilium-is-up-condition" $values.operator.setNodeNetworkStatus
      "skip-crd-creation" $values.operator.skipCRDCreation
      "operator-api-serve-addr" (printf "127.0.0.1:%d" (int $values.operator.healthPort))
      "operator-prometheus-serve-addr" (printf "%s:%d" (ternary "" "127.0.0.1" $values.operator.prometheus.enabled) (int $values.operator.prometheus.port))
      "prometheus-serve-addr" (printf "%s:%d" (ternary "" "127.0.0.1" $values.prometheus.enabled) (int $values.prometheus.port))
-}}
{{- if eq $normal.routingMode "tunnel" -}}
  {{- $_ := set $config "tunnel-protocol" $normal.tunnelProtocol -}}
  {{- with int $values.tunnelPort }}{{ $_ := set $config "tunnel-port" . }}{{ end -}}
  {{- with $values.underlayProtocol }}{{ $_ := set $config "underlay-protocol" . }}{{ end -}}
{{- end -}}
{{- if $values.ipv6.enabled -}}
  {{- $_ := set $config "enable-ipv6-masquerade" $values.enableIPv6Masquerade -}}
{{- end -}}
{{- with $values.ipv6NativeRoutingCIDR }}{{ $_ := set $config "ipv6-native-routing-cidr" . }}{{ end -}}
{{- with $normal.nativeRoutingCIDR }}{{ $_ := set $config "ipv4-native-routing-cidr" . }}{{ end -}}
{{- with int $values.MTU }}{{ $_ := set $config "mtu" . }}{{ end -}}
{{- $devices := $values.devices -}}
{{- if kindIs "slice" $devices }}{{ $devices = join " " $devices }}{{ end -}}
{{- with $devices }}{{ $_ := set $config "devices" . }}{{ end -}}
{{- with $values.nodePort.range }}{{ $_ := set $config "node-port-range" . }}{{ end -}}
{{- with $values.externalIPs.allow }}{{ $_ := set $config "allow-external-addresses" (join " " .) }}{{ end -}}
{{- with $values.labels }}{{ $_ := set $config "labels" . }}{{ end -}}
{{- with $values.logFormat }}{{ $_ := set $config "log-format" . }}{{ end -}}
{{- with $values.bpf.ctTcpMax }}{{ $_ := set $config "bpf-ct-global-tcp-max" (int .) }}{{ end -}}
{{- with $values.bpf.ctAnyMax }}{{ $_ := set $config "bpf-ct-global-any-max" (int .) }}{{ end -}}
{{- with $values.bpf.natMax }}{{ $_ := set $config "bpf-nat-global-max" (int .) }}{{ end -}}
{{- with $values.bpf.lbMapMax }}{{ $_ := set $config "bpf-lb-map-max" (int .) }}{{ end -}}
{{- if eq $values.ipam.mode "cluster-pool" -}}
  {{- if $values.ipv4.enabled -}}
    {{- $_ := set $config "cluster-pool-ipv4-cidr" (join " " $normal.podCIDRs) -}}
    {{- $_ := set $config "cluster-pool-ipv4-mask-size" (int $values.ipam.operator.clusterPoolIPv4MaskSize) -}}
  {{- end -}}
  {{- if $values.ipv6.enabled -}}
    {{- $_ := set $config "cluster-pool-ipv6-cidr" (join " " $normal.podCIDRs6) -}}
    {{- $_ := set $config "cluster-pool-ipv6-mask-size" (int $values.ipam.operator.clusterPoolIPv6MaskSize) -}}
  {{- end -}}
{{- end -}}
{{- if $values.cni.install -}}
  {{- $_ := set $config "write-cni-conf-when-ready" "/host/etc/cni/net.d/05-cilium.conflist" -}}
{{- end -}}
{{- /* What clients look for; this version has none of it. */ -}}
{{- range list
      "clustermesh-enable-endpoint-sync" "enable-bgp-control-plane" "enable-encryption-strict-mode"
      "enable-endpoint-routes" "enable-envoy-config" "enable-gateway-api" "enable-host-firewall" "enable-hubble"
      "enable-ingress-controller" "enable-ipsec" "enable-ipv4-egress-gateway" "enable-ipv6-egress-gateway"
      "enable-l7-proxy" "enable-local-redirect-policy" "enable-policy-secrets-sync" "enable-wireguard"
      "mesh-auth-mutual-enabled" "multicast-enabled" "wireguard-encapsulate" -}}
  {{- $_ := set $config . false -}}
{{- end -}}
{{- $_ := set $config "policy-cidr-match-mode" "" -}}
{{- range $key, $value := $values.extraConfig }}{{ $_ := set $config $key $value }}{{ end -}}
{{- /* Numbers of YAML are floats here, and those print large ones with an exponent. */ -}}
{{- range $key, $value := $config }}
{{- $whole := and (kindIs "float64" $value) (eq (floor $value) $value) }}
{{ $key }}: {{ ternary (int64 $value) $value $whole | toString | quote }}
{{- end }}
{{- end -}}
