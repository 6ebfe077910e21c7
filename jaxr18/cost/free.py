"""The primitives that a MAC count charges nothing for, by convention.

They are matched by name. A primitive that is in none of these sets, has no
rule of its own and holds no jaxpr is not taken for free: it stops the count,
so a name that a later JAX changes is an error to mend here, never a silent 0.
"""

# Move, cast or label data; draw random bits; talk between devices. Not work
# in any counter's convention, so they are not even listed.
MOVEMENT = frozenset(
  """
  after_all all_gather all_gather_done all_gather_invariant
  all_gather_reduced all_gather_reduced_start all_gather_start all_to_all
  all_to_all_done all_to_all_start axis_index bitcast_convert_type
  broadcast_in_dim broadcast_to clone complex concatenate
  convert_element_type copy copy_p create_token dce_sink debug_callback
  debug_print device_put dimension_size dim_as_value dynamic_slice
  dynamic_update_slice empty empty2 empty_ref free_ref freeze from_edtype
  gather get get_global imag inspect_sharding iota iota_2x32_shape
  layout_constraint masked_load masked_swap mesh_cast multiple_of name new_ref
  num_programs optimization_barrier pad pbroadcast pbroadcast_done
  pbroadcast_start pin platform_index ppermute ppermute_done ppermute_start
  precv preduced program_id psend pvary ragged_all_to_all random_bits
  random_clone random_fold_in random_gamma random_seed random_split
  random_unwrap random_wrap real reduce_precision reduced_vary_cast_p reshape
  reshard rev rng_bit_generator rng_uniform scatter select_n semaphore_read
  semaphore_signal semaphore_wait shape_assertion sharding_constraint slice
  split squeeze stack stop_gradient swap threefry2x32 threefry4x32 philox2x32
  philox4x32 tie tile to_edtype transpose unpin unreachable unstack
  vary_unreduced_cast_p with_memory_space_constraint zeros_like
  """.split()
)

# Elementwise functions, normalization, activations, pooling, reductions,
# sorting. Charged 0 MACs; their elements are listed apart when asked.
ARITHMETIC = frozenset(
  """
  abs accum_grad_in_ref acos acosh add add_any addupdate and approx_top_k
  argmax argmin asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
  clamp clz conj cos cosh cumlogsumexp cummax cummin cumprod cumsum digamma
  div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma
  igamma_grad_a igammac integer_pow is_finite le le_to lgamma log log1p
  logistic lt lt_to lu_pivots_to_permutation max min mul mulhi ne neg
  nextafter not or pmax pmin polygamma population_count pow psum psum_done
  psum_invariant psum_invariant_start psum_start reciprocal reduce_and
  reduce_max reduce_min reduce_or reduce_prod reduce_scatter
  reduce_scatter_done reduce_scatter_start reduce_sum reduce_window_max
  reduce_window_min reduce_window_sum reduce_xor
  regularized_incomplete_beta rem round rsqrt scatter-add scatter-max
  scatter-min scatter-mul scatter-sub select_and_gather_add
  select_and_scatter_add shift_left shift_right_arithmetic
  shift_right_logical sign sin sinh sort sqrt square sub tan tanh top_k
  unreduced_psum unreduced_reduce_scatter xor zeta
  """.split()
)
