"""What the counter knows of JAX's primitives, by name.

Every primitive of the supported releases is in one of these sets or has a rule
in `jaxr18.cost.macs`; tests/cost/test_macs.py holds the installed release to
that. A name that is nowhere stops the count, so what a later JAX adds is an
error to mend here, never a silent 0.
"""

# Move, cast or label data; draw random bits; talk between devices. Not work
# in any counter's convention, so they are not even listed.
MOVEMENT = frozenset(
  """
  add_dependency after_all all_gather all_gather_done all_gather_invariant
  all_gather_reduced all_gather_reduced_start all_gather_start all_to_all
  all_to_all_done all_to_all_start assert_consumed_value
  async_copy_scales_to_tmem async_copy_smem_to_tmem
  async_copy_sparse_metadata_to_tmem async_load async_prefetch
  async_store_smem async_store_tmem atomic_cas axis_index barrier
  barrier_arrive barrier_arrive_and_wait barrier_test barrier_wait
  bcoo_extract bcoo_fromdense bcoo_sort_indices bcoo_sum_duplicates
  bcoo_todense bcoo_transpose bcsr_extract bcsr_fromdense bcsr_todense bitcast
  bitcast_convert_type box_get box_set broadcast_in_dim broadcast_to check
  commit_group commit_smem commit_tmem complex concatenate consume
  convert_element_type coo_fromdense coo_todense copy copy_gmem_to_smem
  copy_smem_to_gmem create_linear create_token csr_fromdense csr_todense
  dce_sink debug_barrier debug_barrier_p debug_callback debug_print delay
  device_put dim_as_value dimension_size dma_start dma_wait dynamic_slice
  dynamic_update_slice einshape_lo empty empty2 empty_ref free_ref freeze
  from_edtype gather get get_barrier_semaphore get_global
  global_array_to_host_local_array griddepcontrol_launch_dependents
  griddepcontrol_wait has_memory_space host_local_array_to_global_array imag
  inspect_sharding iota iota_2x32_shape layout_cast layout_constraint load
  log_extend log_read masked_load masked_swap max_contiguous mgpu_atomic_store
  multimem_store multiple_of name new_box new_log new_ref num_programs
  optimization_barrier pack pack_dtype pack_elementwise pad pbroadcast
  pbroadcast_done pbroadcast_dynamic pbroadcast_start philox2x32 philox4x32
  pin platform_index ppermute ppermute_done ppermute_start precv preduced
  print_layout prng_join prng_random_bits prng_seed prng_split program_id
  psend pvary query_cluster_cancel ragged_all_to_all random_bits random_clone
  random_fold_in random_gamma random_seed random_split random_unwrap
  random_wrap real reduce_precision reduced_vary_cast reduced_vary_cast_p
  relayout remove_memory_space reshape reshard rev rng_bit_generator
  rng_uniform roll scatter select_n semaphore_read semaphore_signal
  semaphore_signal_multicast semaphore_signal_parallel semaphore_wait
  set_max_registers set_max_registers_p shape_assertion shard_alike
  sharding_constraint slice split squeeze stack stage stop_gradient store swap
  tcgen05_commit_arrive threefry2x32 threefry4x32 tie tile to_edtype todense
  trace_value transpose try_cluster_cancel unpack unpack_dtype
  unpack_elementwise unpin unreachable unstack vary_unreduced_cast
  vary_unreduced_cast_p wait_gmem_to_smem wait_load_tmem wait_smem_to_gmem
  wgmma_accumulator_deref wgmma_accumulator_deref_p wgmma_accumulator_store
  wgmma_accumulator_store_p wgmma_ref wgmma_wait with_memory_space_constraint
  xla_metadata_value zeros_like
  """.split()
)

# Elementwise functions, normalization, activations, pooling, reductions,
# sorting. Charged 0 MACs; their elements are listed apart when asked.
ARITHMETIC = frozenset(
  """
  _copysign abs accum_grad_in_ref acos acosh add add_any add_gradients addupdate
  all_reduce_ffs all_reduce_population_count and approx_top_k argmax argmin asin
  asinh atan atan2 atanh atomic_rmw batch_norm batch_norm_add
  batch_norm_add_grad batch_norm_grad bessel_i0e bessel_i1e cbrt ceil clamp clz
  conj cos cosh cumlogsumexp cummax cummin cumprod cumsum digamma div eq eq_to
  erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac
  integer_pow is_finite le le_to lgamma log log1p log2 logistic lt lt_to
  lu_pivots_to_permutation masked_cummax masked_cummin masked_cumsum masked_sort
  max min mosaic_gpu_reduce_max mosaic_gpu_reduce_min mosaic_gpu_reduce_prod
  mosaic_gpu_reduce_sum mul mulhi multimem_load_reduce ne neg nextafter not
  one_minus_square or pmax pmin polygamma polynomial population_count pow psum
  psum_done psum_invariant psum_invariant_start psum_start quantize
  quantize_grad reciprocal reduce reduce_and reduce_max reduce_min reduce_or
  reduce_prod reduce_scatter reduce_scatter_done reduce_scatter_start reduce_sum
  reduce_window reduce_window_max reduce_window_min reduce_window_sum reduce_xor
  regularized_incomplete_beta rem round rsqrt sc_fetch_and_add scan_count
  scatter-add scatter-max scatter-min scatter-mul scatter-sub
  select_and_gather_add select_and_scatter select_and_scatter_add shift_left
  shift_right_arithmetic shift_right_logical sign sin sinh sort sqrt square
  stochastic_round sub tan tanh top_k unique unreduced_pmax unreduced_pmin
  unreduced_psum unreduced_psum_start unreduced_reduce_scatter
  unreduced_reduce_scatter_start xor zeta
  """.split()
)

# Hold one jaxpr, and run it once. Whatever else holds a jaxpr may run it any
# number of times.
ONCE = frozenset(
  """
  call closed_call composite compute_on custom_jvp_call custom_jvp_call_jaxpr
  custom_linear_solve custom_partitioning custom_vjp_call custom_vmap_call
  eval_jaxpr fused_call fusible jaxpr_call jit linear_call own_call
  program_order
  remat2 remat_opt run_scoped run_state xla_metadata_call
  """.split()
)

# May multiply in a way that a jaxpr does not tell: linear algebra, foreign
# code, one machine's own kernels, and bodies that run once a core or a block.
REFUSED = frozenset(
  """
  bcoo_dot_general bcoo_dot_general_sampled bcoo_spdot_general
  bcsr_dot_general buffer_callback call_exported call_hi_primitive
  call_hi_primitive_linearized cholesky cholesky_update conv coo_matmat
  coo_matvec coo_spmm coo_spmv core_map csr_matmat csr_matvec csr_spmm
  csr_spmv cudnn_fusion custom_fusion custom_lin dot_product_attention_bwd
  dot_product_attention_bwd_wrapper dot_product_attention_fp8_bwd
  dot_product_attention_fp8_bwd_wrapper dot_product_attention_fp8_fwd
  dot_product_attention_fp8_fwd_wrapper dot_product_attention_fwd
  dot_product_attention_fwd_wrapper eig eigh elementwise_inline_asm
  elementwise_inline_asm_p emit_pipeline ffi_call fft geqp3 geqrf hessenberg
  householder_product inline_mgpu inline_mgpu_p io_callback lu matmul_acc_lhs
  matmul_lhs_fifo matmul_pop matmul_pop_fifo matmul_push_rhs mma mosaic_gpu_p
  mpmd_map ormqr parallel_loop pipeline_body pure_callback qr rnn_bwd rnn_fwd
  scaled_matmul scaled_matmul_wrapper schur spsolve svd symmetric_product
  tcgen05_mma thunky.all_gather thunky.all_reduce thunky.all_to_all
  thunky.async_done thunky.async_start thunky.call_jax
  thunky.call_thunky_nested thunky.collective_group thunky.collective_permute
  thunky.cond thunky.copy thunky.custom_call thunky.inline_constant
  thunky.memset thunky.memzero thunky.ptx_kernel thunky.reduce_scatter
  thunky.while tpu_custom_call triangular_solve tridiagonal tridiagonal_solve
  wgmma
  """.split()
)
